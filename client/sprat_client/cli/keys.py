"""`sprat keys`: who signs what, keys that people hold, and signatures that cross to a machine without a network."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sprat_client.cli.invocation import JsonFlag, connect
from sprat_client.cli.output import emit, emit_table
from sprat_shared.errors import Conflict, InvalidInput

if TYPE_CHECKING:
    from securesystemslib.signer import Key

    from sprat_client.api import DraftView, NeedView, SignedView, SpratClient
    from sprat_client.cli.signing_bundles import ToSign

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Keys of the image repository, and signatures.")

Passphrase = Annotated[
    Path | None,
    typer.Option("--passphrase-file", help="File whose first line is the passphrase.  [default: asked for]"),
]
KeyUri = Annotated[
    str, typer.Option("--key", help="URI of the private key: file2:PATH, hsm:…, awskms:…, gcpkms:…, azurekms:…")
]
KeyId = Annotated[
    str | None, typer.Option("--keyid", help="Start of the key's id, where an HSM or a KMS does not say which it is.")
]


@app.command()
def generate(
    *,
    name: Annotated[str, typer.Argument(help="Whose key it is; names NAME.pem and NAME.pub.json.")],
    folder: Annotated[Path, typer.Option(help="Where both files are made.")] = Path(),
    passphrase_file: Passphrase = None,
    no_passphrase: Annotated[bool, typer.Option("--no-passphrase", help="Leave the private key unencrypted.")] = False,
    json_: JsonFlag = False,
) -> None:
    """Make an ed25519 key in an encrypted file. Needs no server: run it where the key will live.

    Hand out NAME.pub.json; nobody else needs NAME.pem.

    Example: sprat keys generate alice
    """
    from sprat_client.cli import private_keys  # noqa: PLC0415 - cryptography is not loaded for `sprat delta`

    secret = private_keys.read_passphrase(passphrase_file)
    if secret is None and not no_passphrase:
        secret = str(typer.prompt("passphrase", hide_input=True, confirmation_prompt=True, err=True)).encode()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.json"
    key = private_keys.generate(private, name, secret)
    private_keys.write_public(public, key)
    made = {"keyid": key.keyid, "holder": name, "uri": f"file2:{private}", "public": str(public)}
    emit(made, as_json=json_, text=f"key {key.keyid}\nprivate half file2:{private}\npublic half {public}")


@app.command()
def public(
    *,
    uri: Annotated[
        str, typer.Argument(help="URI of the private key: file2:PATH, hsm:, awskms:ID, gcpkms:…, azurekms:…")
    ],
    name: Annotated[str, typer.Option(help="Whose key it is.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    passphrase_file: Passphrase = None,
    json_: JsonFlag = False,
) -> None:
    """Write the public half of a key that exists, in a file, an HSM or a KMS. Needs no server.

    Example: sprat keys public hsm: --name bob -o bob.pub.json
    """
    from sprat_client.cli import private_keys  # noqa: PLC0415 - see generate

    key = private_keys.public_half(uri, name, private_keys.read_passphrase(passphrase_file))
    private_keys.write_public(output, key)
    emit({"keyid": key.keyid, "holder": name, "public": str(output)}, as_json=json_, text=f"key {key.keyid}\n{output}")


@app.command()
def init(
    ctx: typer.Context,
    *,
    root_key: Annotated[list[Path], typer.Option(help="Public half of a root key; once for each holder.")],
    targets_key: Annotated[
        list[Path] | None, typer.Option(help="Public half of a targets key.  [default: the root keys]")
    ] = None,
    threshold: Annotated[int, typer.Option(min=1, help="How many holders of root keys must sign.")] = 1,
    targets_threshold: Annotated[
        int | None, typer.Option(min=1, help="How many holders of targets keys must sign.  [default: --threshold]")
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """Take root and targets out of the server's hands: from now on people sign them.

    Nothing changes before enough of the new keys have signed. Do it before the first device enrols: a device that
    trusts an older root follows whoever held its key.

    Example: sprat keys init --root-key alice.pub.json --root-key bob.pub.json --threshold 2
    """
    roles = [
        _role("root", root_key, threshold),
        _role("targets", targets_key or root_key, targets_threshold or threshold),
    ]
    with connect(ctx) as client:
        _tell(client.keys.rotate(roles), as_json=json_)


@app.command()
def rotate(
    ctx: typer.Context,
    *,
    role: Annotated[
        list[str], typer.Argument(help="root, targets, snapshot, timestamp, auto, or m.MODEL; or several.")
    ],
    key: Annotated[
        list[Path] | None, typer.Option(help="Public half of a new key.  [default: the server makes its own]")
    ] = None,
    threshold: Annotated[int, typer.Option(min=1, help="How many of the new keys must sign.")] = 1,
    json_: JsonFlag = False,
) -> None:
    """Give roles other keys; a model that has none of its own gets them so, before or after it is registered.

    After a theft of the server's keys rotate both snapshot and timestamp at once: devices that were sent ahead by
    forged versions recover. `auto` is the key with which the server signs for models.

    Example: sprat keys rotate snapshot timestamp
    """
    roles = [_role(one, key, threshold) for one in role]
    with connect(ctx) as client:
        _tell(client.keys.rotate(roles), as_json=json_)


@app.command()
def show(
    ctx: typer.Context,
    *,
    bundle: Annotated[Path | None, typer.Option(help="Show what is in this file instead; needs no server.")] = None,
    json_: JsonFlag = False,
) -> None:
    """Show every role: version, expiry, keys, threshold, where they are held; and what waits for whose signature.

    Example: sprat keys show
    """
    if bundle is not None:
        from sprat_client.cli.signing_bundles import read_bundle  # noqa: PLC0415 - see generate

        for draft in read_bundle(bundle).drafts:
            emit(draft.view, as_json=json_, text="\n".join(draft.described()))
        return
    with connect(ctx) as client:
        custody = client.keys.show()
    if json_:
        emit(custody, as_json=True, text="")
        return
    columns: dict[str, Callable[[Any], Any]] = {
        "role": lambda one: one["role"],
        "version": lambda one: one["version"],
        "expires": lambda one: one["expires_at"][:10],
        "sign again": lambda one: one["renew_at"][:10],
        "signs": lambda one: f"{one['threshold']} of {_holders(one['keys'])}",
        "keys": lambda one: ", ".join(key["keyid"][:12] for key in one["keys"]),
    }
    emit_table(custody["roles"], columns, as_json=False, empty="no role")
    for view in custody["waiting"]:
        typer.echo(waiting(view))


@app.command()
def sign(
    ctx: typer.Context,
    *,
    key: KeyUri,
    bundle: Annotated[
        Path | None, typer.Option(help="Sign what is in this file, into it; needs no server.  [default: the server's]")
    ] = None,
    role: Annotated[
        list[str] | None, typer.Option(help="Only this role.  [default: all that the key may sign]")
    ] = None,
    keyid: KeyId = None,
    passphrase_file: Passphrase = None,
    json_: JsonFlag = False,
) -> None:
    """Sign what waits: on the server, or in a bundle on a machine without a network. It says what it signs.

    Example: sprat keys sign --bundle ceremony.json --key file2:alice.pem
    """
    from sprat_client.cli import signing_bundles  # noqa: PLC0415 - see generate

    if bundle is not None:
        held = signing_bundles.read_bundle(bundle)
        for draft, signature in _signatures(held.drafts, role, key, keyid, passphrase_file):
            held = held.with_signature(draft, signature)
        signing_bundles.write_bundle(bundle, [draft.view for draft in held.drafts], held.signatures)
        signed = {"bundle": str(bundle), "signatures": len(held.signatures)}
        emit(
            signed, as_json=json_, text=f"{bundle} holds {len(held.signatures)} signatures; bring it back and import it"
        )
        return
    with connect(ctx) as client:
        drafts = [signing_bundles.ToSign.of(view) for view in client.keys.show()["waiting"]]
        done: SignedView | None = None
        for draft, signature in _signatures(drafts, role, key, keyid, passphrase_file):
            done = _merged(
                done,
                client.keys.add_signature(draft.view["digest"], keyid=signature.keyid, signature=signature.signature),
            )
    if done is not None:
        _tell(done, as_json=json_)


@app.command()
def export(
    ctx: typer.Context,
    *,
    file: Annotated[Path, typer.Argument(help="The bundle to write.")],
    role: Annotated[list[str] | None, typer.Option(help="Only what waits of this role.  [default: all]")] = None,
    json_: JsonFlag = False,
) -> None:
    """Write what waits for signatures to a bundle, to be carried to a machine that has a key and no network.

    Example: sprat keys export ceremony.json
    """
    from sprat_client.cli.signing_bundles import write_bundle  # noqa: PLC0415 - see generate

    with connect(ctx) as client:
        chosen = [view for view in client.keys.show()["waiting"] if not role or view["role"] in role]
    if not chosen:
        raise InvalidInput("nothing waits for signatures" + (f" of {', '.join(role)}" if role else ""))
    write_bundle(file, chosen, {})
    text = "\n".join([str(file), *map(waiting, chosen)])
    emit({"bundle": str(file), "drafts": [view["digest"] for view in chosen]}, as_json=json_, text=text)


@app.command("import")
def import_(
    ctx: typer.Context,
    *,
    file: Annotated[Path, typer.Argument(help="A bundle with signatures.")],
    json_: JsonFlag = False,
) -> None:
    """Bring the signatures of a bundle to the server; each is verified here and there before it counts.

    Those that the server has already are passed over, so one bundle may go from hand to hand.

    Example: sprat keys import ceremony.json
    """
    from sprat_client.cli.signing_bundles import read_bundle  # noqa: PLC0415 - see generate

    bundle = read_bundle(file)
    if not bundle.signatures:
        raise InvalidInput(f"{file} holds no signature; sign it first: sprat keys sign --bundle {file} --key …")
    names = {draft.view["digest"]: draft.name for draft in bundle.drafts}
    with connect(ctx) as client:
        waits = {view["digest"]: view for view in client.keys.show()["waiting"]}
        stale = sorted({names[digest] for digest, _ in bundle.signatures if digest not in waits})
        if stale:
            raise Conflict(
                f"{', '.join(stale)} in {file} does not wait any more as it was exported: it was published, "
                "withdrawn or replaced; export it again and sign that",
                code="signing.stale",
            )
        there = {
            (view["digest"], keyid) for view in waits.values() for need in view["needs"] for keyid in need["signed"]
        }
        news = {one: signature for one, signature in bundle.signatures.items() if one not in there}
        if not news:
            raise Conflict(
                f"the server has every signature in {file} already; another key must sign", code="signing.twice"
            )
        done: SignedView | None = None
        for (digest, keyid), signature in news.items():
            if done is not None and digest not in {view["digest"] for view in done["waiting"]}:
                typer.echo(f"{names[digest]} is published; the signature by {keyid[:12]} is not needed", err=True)
                continue
            done = _merged(done, client.keys.add_signature(digest, keyid=keyid, signature=signature))
    if done is not None:
        _tell(done, as_json=json_)


@app.command()
def withdraw(
    ctx: typer.Context,
    *,
    role: Annotated[str, typer.Argument(help="The role whose next version waits.")],
    release: Annotated[int | None, typer.Option(help="The release that it publishes.")] = None,
    json_: JsonFlag = False,
) -> None:
    """Drop what waits for signatures, with the signatures that it has.

    Example: sprat keys withdraw root
    """
    with connect(ctx) as client:
        found = [view for view in client.keys.show()["waiting"] if (view["role"], view["release"]) == (role, release)]
        if not found:
            raise InvalidInput(f"nothing of {role} waits for signatures; see: sprat keys show")
        _tell(client.keys.withdraw(found[0]["digest"]), as_json=json_)


def sign_release(
    client: "SpratClient", views: Sequence["DraftView"], uri: str, keyid: str | None, passphrase_file: Path | None
) -> "SignedView":
    """Sign the drafts of one release and bring the signatures; used by `sprat release sign`."""
    from sprat_client.cli.signing_bundles import ToSign  # noqa: PLC0415 - see generate

    done: SignedView | None = None
    for draft, signature in _signatures([ToSign.of(view) for view in views], None, uri, keyid, passphrase_file):
        digest = draft.view["digest"]
        done = _merged(done, client.keys.add_signature(digest, keyid=signature.keyid, signature=signature.signature))
    return done or {"published": [], "waiting": list(views)}


def waiting(draft: "DraftView") -> str:
    """Return what a draft waits for, in one line."""
    release = f" for {draft['role'].removeprefix('m.')}@{draft['release']}" if draft["release"] is not None else ""
    wants = "; ".join(dict.fromkeys(_wants(need) for need in draft["needs"] if need["missing"]))
    lacks = "keys: sprat keys rotate" if not draft["needs"] else wants or "another role to be signed with it"
    return f"{draft['role']} {draft['version']}{release} ({draft['reason']}) waits for {lacks}"


def _wants(need: "NeedView") -> str:
    left = [key for key in need["keys"] if key["keyid"] not in need["signed"]]
    return f"{need['missing']} of {_holders(left)}"


def _holders(keys: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(key["holder"] or key["keyid"][:12] for key in keys)


def _role(role: str, files: Sequence[Path] | None, threshold: int) -> dict[str, Any]:
    from sprat_client.cli.private_keys import read_public  # noqa: PLC0415 - see generate

    keys: list[Key] = [read_public(file) for file in files or ()]
    if files and threshold > len({key.keyid for key in keys}):
        raise InvalidInput(f"{role}: a threshold of {threshold} cannot be met by {len(keys)} keys")
    said = [{"keyid": key.keyid, "key": key.to_dict()} for key in keys]
    return {"role": role, "keys": said or None, "threshold": threshold}


def _signatures(
    drafts: Sequence["ToSign"], roles: Sequence[str] | None, uri: str, keyid: str | None, passphrase_file: Path | None
) -> list[tuple["ToSign", Any]]:
    """Return a signature over each draft that the key may sign; InvalidInput where there is none."""
    from sprat_client.cli import private_keys  # noqa: PLC0415 - see generate

    chosen = [draft for draft in drafts if not roles or draft.view["role"] in roles]
    if not chosen:
        raise InvalidInput("nothing waits for signatures" + (f" of {', '.join(roles)}" if roles else ""))
    allowed = {one: key for draft in chosen for one, key in draft.keys.items() if one.startswith(keyid or "")}
    signer = private_keys.open_signer(uri, allowed, private_keys.read_passphrase(passphrase_file))
    made = []
    for draft in chosen:
        if signer.public_key.keyid in draft.keys:
            typer.echo("\n".join(draft.described()), err=True)
            made.append((draft, draft.sign(signer)))
    return made


def _merged(before: "SignedView | None", after: "SignedView") -> "SignedView":
    earlier = [] if before is None else before["published"]
    return {"published": [*earlier, *after["published"]], "waiting": after["waiting"]}


def _tell(done: "SignedView", *, as_json: bool) -> None:
    lines = [f"published: {', '.join(done['published'])}"] if done["published"] else []
    emit(done, as_json=as_json, text="\n".join([*lines, *map(waiting, done["waiting"])]) or "nothing waits")
    if done["waiting"]:
        typer.echo("next: sprat keys sign --key URI, or sprat keys export FILE to sign elsewhere", err=True)
