"""Which model: names, files and downloads; knows no engine."""
