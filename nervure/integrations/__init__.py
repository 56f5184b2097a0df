"""Callbacks that hold masks in the loops of other libraries; each module needs its library (an extra)."""
