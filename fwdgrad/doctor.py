"""Check a model before training it: ``python -m fwdgrad.doctor model=conv``; keys: ``configs/doctor.yaml``."""

from fwdgrad.cli_doctor import doctor as main

if __name__ == "__main__":
    main()
