"""``python -m nervure`` is the command line."""

from nervure.cli import main

if __name__ == "__main__":
    main(prog_name="nervure")
