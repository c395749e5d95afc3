"""How a device joins and leaves: survey, installation, enrolment, undo, removal."""
