"""Pages of charts and tables in one HTML file, for the reports of runs, indexes and downloads."""
