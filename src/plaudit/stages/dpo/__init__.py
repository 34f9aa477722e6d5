"""Direct preference optimisation: settings and loop."""
