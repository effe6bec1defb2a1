"""Networks that people really use, in an environment of their own (`make zoo`)."""
