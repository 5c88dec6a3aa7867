"""What tools of version 0.1 imported from here."""
from mmsnn.experiments.page import find as find
