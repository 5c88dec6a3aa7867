"""What each command takes and does; nothing here loads torch before the arguments are read."""
