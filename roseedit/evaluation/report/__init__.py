"""What is made of finished runs: tables as text, a comparison of runs, and one page with everything."""
