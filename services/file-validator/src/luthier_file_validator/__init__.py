"""The file-validator: says whether data can be trained on, and exactly where not."""
