# make demo | test | check | docs | lowest | oracle | bench | mutants | portable | fuzz: each sets up what it needs, once.
PYTHON ?= python3
VENV ?= .venv
ORACLE ?= .venv-oracle
EXTRAS ?= torch,tf,flax,examples
BACKENDS ?= torch,tf,flax
DEMO ?= out/demo
CASES ?= 20000
LOWEST ?= torch tf flax
PICTURES = vit_core/assets/digits/pictures
FAMILIES = timm==1.0.31 torchvision==0.28.0
FIVE = transformers==5.24.0

READY = $(VENV)/.installed-$(EXTRAS)
DEMO_READY = $(VENV)/.demo-$(BACKENDS)
# PyTorch without CUDA, where there is no GPU, and where the index of such builds can be reached: else the package index's.
CPU_BUILDS = https://download.pytorch.org/whl/cpu
CPU_ALONE = ! command -v nvidia-smi > /dev/null && $(PYTHON) -c 'import urllib.request as r; \
	r.urlopen("$(CPU_BUILDS)/torch/", timeout=5)' 2> /dev/null
CPU_TORCH = $$($(CPU_ALONE) && echo --extra-index-url $(CPU_BUILDS))
# The newest pip resolves in a third of the time of that which Python brings (venv --upgrade-deps).
# Half of the time of an installation would go into compiling files that are never imported; Python compiles the others.
# It keeps what it compiled, whatever the surroundings say: else each process would compile its framework again.
unexport PYTHONDONTWRITEBYTECODE
INSTALL = $(VENV)/bin/python -m pip install --no-compile $(CPU_TORCH) -c constraints.txt
ORACLE_READY = $(ORACLE)/.installed

# The heart of the suite, and what the extras are for.
CORE = attention_maps backends checkpoint config conversion convert_cli digits documents embed export features flax \
	gradients h5 hub image_processing initialization keras_h5 mae members models msgpack names npz outputs params pipeline \
	position preprocessing pretrained pytorch_bin saving serve similar tf torch what_is_saved
WITH_torch = ,onnx,parquet,heif,similar,serve
COMMA = ,
TOOLS = dev$(if $(findstring torch,$(EXTRAS)),$(COMMA)dev-torch)$(if $(findstring flax,$(EXTRAS)),$(COMMA)dev-flax)

.PHONY: demo test check docs lowest oracle bench mutants portable fuzz clean

demo: $(DEMO_READY)
	@mkdir -p $(DEMO)
	$(VENV)/bin/vit classify $(PICTURES)
	$(VENV)/bin/vit inspect vit_core/assets/digits
	$(VENV)/bin/vit attend $(firstword $(sort $(wildcard $(PICTURES)/*.png))) --out $(DEMO)/attention.png
	$(VENV)/bin/vit verify vit_core/assets/digits

test: $(READY)
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	MYPY_NUM_WORKERS=2 $(VENV)/bin/mypy

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --quiet
	@echo "Open out/site/index.html; its search needs a server: $(VENV)/bin/python -m http.server --directory out/site"

lowest: $(LOWEST:%=lowest-%)

.PRECIOUS: .venv-lowest-%/.installed
lowest-%: .venv-lowest-%/.installed
	.venv-lowest-$*/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -W default::DeprecationWarning \
		$(CORE:%=tests/test_%.py)

oracle: $(ORACLE_READY)
	$(ORACLE)/bin/python -m pytest tests/oracle

bench: $(ORACLE_READY)
	$(ORACLE)/bin/python -m benchmarks $(if $(QUICK),--quick)

mutants: $(READY)
	$(VENV)/bin/python tests/mutants.py

portable: $(READY)
	$(VENV)/bin/python tests/portable.py

fuzz: $(READY)
	$(VENV)/bin/python tests/fuzz --cases $(CASES) --regressions

clean:
	rm -rf $(VENV) $(ORACLE) .venv-lowest-* build dist out

$(DEMO_READY): pyproject.toml constraints.txt
	@echo "Installing $(BACKENDS) into $(VENV), once: about 1.1 GB for torch, 2.2 GB for tf, 0.7 GB for flax."
	$(PYTHON) -m venv --upgrade-deps $(VENV)
	$(INSTALL) -e ".[$(BACKENDS)]"
	@touch $@

$(READY): pyproject.toml constraints.txt
	@echo "Installing $(EXTRAS) and what tests need into $(VENV), once: about 5 GB with all frameworks."
	$(PYTHON) -m venv --upgrade-deps $(VENV)
	$(INSTALL) -e ".[$(EXTRAS),$(TOOLS)]"
	@touch $@

# The oldest releases that pyproject.toml allows, of what it names itself; the tools of the tests are the newest.
.venv-lowest-%/.installed: pyproject.toml
	$(PYTHON) -m venv --clear .venv-lowest-$*
	.venv-lowest-$*/bin/python -m pip install --quiet uv
	.venv-lowest-$*/bin/uv pip install --python .venv-lowest-$* --resolution lowest-direct \
		$$($(CPU_ALONE) && echo --torch-backend cpu) -e ".[$*$(WITH_$*)]"
	.venv-lowest-$*/bin/uv pip install --python .venv-lowest-$* pytest pytest-xdist hypothesis psutil
	@touch $@

$(ORACLE_READY): pyproject.toml tests/oracle/requirements.txt
	$(PYTHON) -m venv --upgrade-deps $(ORACLE)
	$(ORACLE)/bin/python -m pip install --quiet -r tests/oracle/requirements.txt
	$(ORACLE)/bin/python -m pip install --quiet --no-deps --upgrade --target $(ORACLE)/families $(FAMILIES)
	$(ORACLE)/bin/python -m pip install --quiet --upgrade --target $(ORACLE)/five $(FIVE)
	@touch $@
