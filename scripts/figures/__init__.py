"""Tables and figures of the runs of each command, and the page that all figures share."""
