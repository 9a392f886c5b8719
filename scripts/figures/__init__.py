"""Draw the reports of runs: a module for each kind of run with its rows and panels, and the page that all share."""
