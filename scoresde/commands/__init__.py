"""What the command lines do, as functions of a plain configuration."""
