"""What the suite shares: the golden data and the backends that are installed."""
