"""How keys are used, and which of them need attention."""
