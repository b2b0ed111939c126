"""What is read: facts, requests and records, the readers of published data sets, and downloads."""
