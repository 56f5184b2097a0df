"""Pure maths of dependence: tensors in, tensors out, no models."""
