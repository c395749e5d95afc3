"""The command line: parse, call one operation, render. The only place that catches every error."""
