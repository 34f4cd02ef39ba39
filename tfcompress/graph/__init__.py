"""A Keras model as a graph: read it, select in it, rebuild it, count its cost."""
