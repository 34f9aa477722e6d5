"""Items to be labelled: put in, put in order, leased out, answered."""
