"""What stands in the way of a build on this machine: each finding says what to do. Imports no torch."""

from embedstore.doctor.examine import examine
from embedstore.doctor.finding import Finding

__all__ = ["Finding", "examine"]
