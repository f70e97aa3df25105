"""The phantom: synthetic beating hearts whose labels are exact, for demonstrations and tests."""

from embedstore.phantom.heart import Patient, Ventricle, draw_patient
from embedstore.phantom.write import PhantomSummary, write_phantom

__all__ = ["Patient", "PhantomSummary", "Ventricle", "draw_patient", "write_phantom"]
