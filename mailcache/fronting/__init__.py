"""What stands behind the front that stock senders of Twisted talk to."""
