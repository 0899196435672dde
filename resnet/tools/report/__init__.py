"""report.html: one page that explains a run."""
