"""Learning studies: settings and rules are fixed in each file before it runs, results are whatever comes out."""
