"""The keeper as a program: ``twist mailcache``."""
