"""Serves base models and the adapters made from them. Nothing outside `luthier_inference.engine` imports torch, and
nothing imports that package before the first base model is loaded, so an idle service stays small."""
