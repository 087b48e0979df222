"""How the judges' weights, golden numbers and tables of real songs were made."""
