"""`python -m lora_studio`."""

from lora_studio.cli.main import main

if __name__ == "__main__":
    main()
