"""The SMTP language: bytes in, values out. Imports no Twisted and does no I/O."""
