"""`diver-trt doctor`: what works on this machine, and how to repair the rest."""

from __future__ import annotations

import typer

from diver_trt.cli.console import print_json
from diver_trt.cli.options import BundlePath, Json, open_bundle


def doctor(bundle: BundlePath = None, as_json: Json = False) -> None:
    """Try everything that a recovery may need, and name the command that repairs each failure."""
    from dataclasses import asdict

    from diver_trt.doctor import examine, usable

    findings = []
    for finding in examine(open_bundle(bundle)):
        findings.append(finding)
        if not as_json:
            print(f"{finding.state:<8} {finding.subject}: {finding.detail}")
            if finding.remedy and finding.state != "works":
                print(f"         -> {finding.remedy}")
    if as_json:
        print_json(usable=usable(findings), findings=[asdict(finding) for finding in findings])
    if not usable(findings):
        raise typer.Exit(1)
