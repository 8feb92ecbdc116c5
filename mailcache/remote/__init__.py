"""Sessions of another process: the keeper that has them, and the cache of those who borrow them."""
