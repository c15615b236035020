"""Import of files, folders and zip archives into a dataset."""
