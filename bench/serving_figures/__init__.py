"""What the serving benchmark measures, a module for each group of figures."""
