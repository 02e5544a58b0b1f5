"""The tasks that are built in, one file each. To add one, add a file whose ``task(example)`` returns a `Task`."""
