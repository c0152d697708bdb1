"""The public functions, a module for each: the only place that joins the half that measures and the half that shows.

torch is imported inside the functions, so that loading a saved run, and the command line's help, don't pay for it.
"""
