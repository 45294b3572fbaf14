"""Running a model with mediators recorded, patched or edited, its late part kept, and its work kept and shared."""
