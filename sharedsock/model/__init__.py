"""WHAT THINGS ARE: values and tables. No I/O, no thread, no lock, no clock; every room may import this one."""
