"""One file for each way out of the process: database, blobs, HTTP. They know neither rules, core nor settings."""
