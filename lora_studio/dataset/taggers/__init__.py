"""Models that say what is in a picture. torch, timm and transformers are imported only when one is loaded."""
