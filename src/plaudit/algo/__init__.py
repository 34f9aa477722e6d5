"""Pure tensor maths: no configuration, no device, no logger. Shapes are in the names: B sequences, T positions."""
