"""`vit serve`: `server` is the application, `protocols` its bodies, `batching` the way to the model."""
