"""Items to be labelled: put in, put in order, given out, handed in."""
