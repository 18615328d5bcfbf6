"""`python -m models`: train, evaluate, compare and what else is done with logs and bundles.

python -m models train    --model sasrec --data ml-1m --events DIR --out artifacts/ml-1m
python -m models join     --generator artifacts/tiger --dense artifacts/sasrec --out artifacts/both --set beams=20
python -m models evaluate --bundle artifacts/ml-1m --data ml-1m --events DIR --split loo --k 10,20
python -m models compare  --models sasrec --bundles artifacts/ml-1m --data ml-1m --events DIR
python -m models widths   --bundle artifacts/tiger --data s3rec --events DIR --widths 10,20,50,100
python -m models cases    --bundle artifacts/ml-1m --data ml-1m --events DIR --limit 2000 --out cases.jsonl
python -m models transfer --model recgpt --train s3rec:A microlens:B --tune windows:V --test windows:T --out artifacts/t
python -m models off-policy --events data/obd-small --campaign men,women
python -m models compact  log
python -m models extract  --url http://127.0.0.1:8000 --bundle artifacts/ml-1m --data ml-1m --events DIR
python -m models list
python -m models inspect  artifacts/ml-1m
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from models import compaction, comparison, extraction, ranker_runs, runs, transfer
from models.bandit_comparison import CAMPAIGNS, compare_bandits
from models.errors import ExportError, InvalidOption
from models.export import EXACT_BELOW, git_commit
from models.histories import Histories
from models.layouts import layouts
from models.progress import Progress
from models.registry import families, family
from models.semantic_ids import SemanticIdConfig
from models.widths import study
from retrieval.bundle import Bundle
from retrieval.errors import SequiturError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; 0 when it did what was asked, 2 when it was refused, 130 when it was interrupted."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options, Progress()))
    except SequiturError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        what = error.strerror or f"{error}: is the disk full?"  # NumPy counts bytes instead of naming the reason
        print(f"{what}{where}; nothing was left half written", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _train(options: argparse.Namespace, progress: Progress) -> int:
    if family(options.model).stage == "ranker":
        return _train_ranker(options, progress)
    if options.retriever is not None:
        raise InvalidOption(f"--retriever goes with a ranker; {options.model} is none")
    try:
        bundle, report = runs.train(
            options.model,
            _source(options),
            options.out,
            dict(options.set),
            progress=progress,
            split=options.split,
            resume=options.resume,
            overwrite=options.overwrite,
            target_recall=options.target_recall,
            exact_below=options.exact_below,
            dense=options.dense,
        )
    except (KeyboardInterrupt, OSError, ExportError):
        kept = runs.workbench(options.out.resolve())
        if kept.is_dir():
            progress.say(f"what was learnt is kept in {kept}; --resume goes on from there")
        raise
    if report:
        print(report)
    print(f"bundle {bundle.name} at {bundle.path}")
    return 0


def _train_ranker(options: argparse.Namespace, progress: Progress) -> int:
    for name in ("dense", "resume"):
        if getattr(options, name):
            raise InvalidOption(f"--{name} says nothing to a ranker; leave it out")
    if options.retriever is None:
        raise InvalidOption(f"{options.model} orders what a retriever finds; name the retriever's bundle: --retriever")
    bundle, judged = ranker_runs.train_ranker(
        options.model,
        runs.read(_source(options), progress, impressions=True),
        Bundle.open(options.retriever),
        options.out,
        dict(options.set),
        split=options.split,
        progress=progress,
        overwrite=options.overwrite,
    )
    print(judged)
    print(f"bundle {bundle.name} at {bundle.path}")
    return 0


def _chain(options: argparse.Namespace, progress: Progress) -> int:
    log = runs.read(_source(options), progress, impressions=True)
    judged = ranker_runs.compare_rankers(
        [Bundle.open(path) for path in options.bundles],
        log,
        split=options.split,
        ks=options.k,
        progress=progress,
    )
    print(judged)
    if options.json:
        options.json.write_text(json.dumps(judged.to_json(), indent=2) + "\n")
    if options.results:
        comparison.append_results(
            options.results,
            judged,
            title=f"rankers, {options.data}, {options.split}",
            date=datetime.now(UTC).date().isoformat(),
            command=shlex.join(["python", "-m", "models", *sys.argv[1:]]),
            commit=git_commit(),
            data_digest=log.digest,
        )
    return 0


def _evaluate(options: argparse.Namespace, progress: Progress) -> int:
    bundle = Bundle.open(options.bundle)
    report = runs.judge_bundle(
        bundle,
        runs.read(_source(options), progress),
        split=options.split,
        ks=options.k,
        seen=options.seen,
        negatives=options.negatives,
        served=options.served,
        progress=progress,
    )
    print(report)
    if options.json:
        options.json.write_text(json.dumps(report.to_json() | {"bundle": bundle.name}, indent=2) + "\n")
    return 0


def _compare(options: argparse.Namespace, progress: Progress) -> int:
    compared = runs.compare(
        options.models,
        options.bundles,
        _source(options),
        dict(options.set),
        workspace=options.workspace,
        split=options.split,
        ks=options.k,
        progress=progress,
    )
    print(compared.table)
    if options.json:
        options.json.write_text(json.dumps(compared.table.to_json(), indent=2) + "\n")
    if options.results:
        compared.append(options.results, command=shlex.join(["python", "-m", "models", *sys.argv[1:]]))
    return 0


def _widths(options: argparse.Namespace, progress: Progress) -> int:
    log = runs.read(_source(options), progress)
    bundle = Bundle.open(options.bundle)
    cases = runs.cases_for(bundle, log, split=options.split)
    found = study(
        bundle,
        cases.sample(options.limit, seed=options.seed) if options.limit else cases,
        widths=options.widths,
        k=options.k[0],
        exhaustive=options.exhaustive,
        seed=options.seed,
        on_progress=progress.cases,
    )
    print(found)
    print(json.dumps({"bundle": bundle.name, "k": found.k, "widths": [line.to_json() for line in found.lines]}))
    return 0


def _join(options: argparse.Namespace, _progress: Progress) -> int:
    made = runs.join(
        options.generator, options.out, dense=options.dense, options=dict(options.set), overwrite=options.overwrite
    )
    print(f"bundle {made.name} at {made.path}")
    return 0


def _cases(options: argparse.Namespace, progress: Progress) -> int:
    log = runs.read(_source(options), progress)
    bundle = Bundle.open(options.bundle)
    written = runs.write_cases(bundle, log, options.out, split=options.split, limit=options.limit, seed=options.seed)
    print(f"{written:,} cases of {bundle.name} at {options.out}")
    return 0


def _transfer(options: argparse.Namespace, progress: Progress) -> int:
    done = transfer.transfer(
        options.model,
        options.train,
        options.tune,
        options.test,
        options.out,
        dict(options.set),
        progress=progress,
        resume=options.resume,
    )
    print(done)
    if options.json:
        options.json.write_text(json.dumps(done.to_json(), indent=2) + "\n")
    if options.results:
        done.append(options.results, command=shlex.join(["python", "-m", "models", *sys.argv[1:]]))
    return 0


def _off_policy(options: argparse.Namespace, progress: Progress) -> int:
    compared = compare_bandits(
        options.events, options.campaign, seed=options.seed, on_bad_row=options.on_bad_row, progress=progress
    )
    print(compared)
    if options.json:
        options.json.write_text(json.dumps(compared.to_json(), indent=2) + "\n")
    if options.results:
        compared.append(options.results, command=shlex.join(["python", "-m", "models", *sys.argv[1:]]))
    return 0


def _compact(options: argparse.Namespace, progress: Progress) -> int:
    print(compaction.compact(options.directory, progress, on_bad_row=options.on_bad_row))
    return 0


def _extract(options: argparse.Namespace, progress: Progress) -> int:
    log = runs.read(_source(options), progress)
    bundle = Bundle.open(options.bundle)
    if options.replay:
        histories = Histories.from_log(log, bundle.catalog, bundle.manifest.event_types)
        honest = extraction.replay(
            options.url, histories, bundle.catalog, window=bundle.manifest.window, progress=progress
        )
        print(honest)
        print(json.dumps(asdict(honest)))
        return 0
    attack = extraction.Attack(length=options.length, at_once=options.at_once, steps=options.steps, seed=options.seed)
    stolen = extraction.extract(
        options.url,
        bundle,
        runs.cases_for(bundle, log, split=options.split).sample(options.limit, seed=options.seed),
        attack,
        arms=options.arms,
        ks=options.lists,
        sizes=options.sequences,
        progress=progress,
    )
    print(stolen)
    if options.results:
        comparison.append_results(
            options.results,
            stolen,
            title=f"extraction, {bundle.name}",
            date=datetime.now(UTC).date().isoformat(),
            command=shlex.join(["python", "-m", "models", *sys.argv[1:]]),
            commit=git_commit(),
            data_digest=log.digest,
        )
    print(json.dumps(stolen.to_json()))
    return 0


def _list(_options: argparse.Namespace, _progress: Progress) -> int:
    for name, maker in families().items():
        print(f"{name}\n  paper     {maker.paper}\n  stage     {maker.stage}\n  status    {maker.status}")
        defaults = ", ".join(f"{key}={value}" for key, value in asdict(maker.Config()).items())
        print(f"  defaults  {defaults}")
        if maker.stage == "generator":
            coding = asdict(replace(SemanticIdConfig(), **maker.semantic))
            print(f"  semantic  {', '.join(f'{key}={value}' for key, value in coding.items())}")
        if maker.recipe:
            print(f"  recipe    {', '.join(f'{key}={value}' for key, value in maker.recipe.items())}")
    return 0


def _inspect(options: argparse.Namespace, _progress: Progress) -> int:
    bundle = Bundle.open(options.bundle)
    manifest = bundle.manifest
    print(f"{bundle.name}   digest {bundle.digest}")
    for name in ("kind", "model", "created", "git_commit", "seed", "window", "exclude_seen"):
        print(f"  {name:<14}{getattr(manifest, name)}")
    for name in ("data", "hyper_parameters", "generation", "index", "metrics"):
        print(f"  {name}")
        for key, value in getattr(manifest, name).items():
            print(f"    {key:<20}{value}")
    print("  graphs")
    for role, graph in manifest.graphs.items():
        print(f"    {role:<20}{graph.file}: {', '.join(graph.inputs)} -> {graph.output}")
    print("  files")
    for name, entry in manifest.files.items():
        print(f"    {name:<20}{entry['bytes']:>12,} bytes  {entry['sha256']}")
    return 0


def _source(options: argparse.Namespace) -> runs.Source:
    return runs.Source(options.data, options.events, options.items, options.on_bad_row, options.core)


def _located(text: str) -> runs.Source:
    layout, colon, path = text.partition(":")
    if not colon or not path:
        raise argparse.ArgumentTypeError(f"{text!r} is not LAYOUT:PATH")
    return runs.Source(layout, [Path(path)])


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not key=value")
    return key, value


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 10,20") from error
    if any(number < 1 for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} holds a number below 1")
    return numbers


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of at least 1")
    return int(text)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m models", description="Train, measure and export sequence models.")
    commands = parser.add_subparsers(required=True, metavar="command")

    data = argparse.ArgumentParser(add_help=False)
    data.add_argument("--data", required=True, help=f"layout of the log: {', '.join(layouts())}")
    data.add_argument("--events", required=True, type=Path, nargs="+", help="the log: files, or one directory")
    data.add_argument("--items", type=Path, help="item table, where the layout has none of its own")
    data.add_argument("--on-bad-row", choices=("fail", "skip"), default="fail")
    data.add_argument("--core", type=int, default=0, help="keep users and items with this many events (off)")
    data.add_argument("--split", choices=("loo", "temporal"), default="loo", help="leave-one-out or a cut in time")

    train = commands.add_parser("train", parents=[data], help="train a model and write its bundle")
    train.add_argument("--model", required=True, help="a name from `python -m models list`")
    train.add_argument("--out", required=True, type=Path, help="bundle directory to write")
    train.add_argument("--set", action="append", type=_pair, default=[], metavar="key=value", help="any option")
    train.add_argument("--resume", action="store_true", help="go on from the checkpoint in OUT.training")
    train.add_argument("--overwrite", action="store_true", help="replace what stands at OUT or OUT.training")
    train.add_argument("--target-recall", type=float, default=0.98, help="of an approximate index against exact")
    train.add_argument("--exact-below", type=int, default=EXACT_BELOW, help="items up to which search is exact")
    train.add_argument("--dense", type=Path, help="bundle of an encoder to fall back on, for a generator")
    train.add_argument("--retriever", type=Path, help="bundle whose candidates are put in order, for a ranker")
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("evaluate", parents=[data], help="measure a bundle on a log")
    evaluate.add_argument("--bundle", required=True, type=Path)
    evaluate.add_argument("--k", type=_numbers, default=(10, 20), help="list lengths, 10,20 by default")
    evaluate.add_argument("--seen", choices=("filtered", "kept"), default="filtered", help="items of the history")
    evaluate.add_argument("--negatives", type=int, help="rank among this many sampled items instead of all")
    evaluate.add_argument("--served", action="store_true", help="through the recommender that serves, index included")
    evaluate.add_argument("--json", type=Path, help="also write the report there")
    evaluate.set_defaults(run=_evaluate)

    compare = commands.add_parser("compare", parents=[data], help="models and baselines in one table")
    compare.add_argument("--models", type=_names, default=(), help="names to train for this, separated by commas")
    compare.add_argument("--bundles", type=Path, nargs="*", default=[], help="bundles trained on the same log")
    compare.add_argument("--workspace", type=Path, default=Path("artifacts/compare"), help="where their bundles go")
    compare.add_argument("--set", action="append", type=_pair, default=[], metavar="key=value")
    compare.add_argument("--k", type=_numbers, default=(10, 20))
    compare.add_argument("--json", type=Path)
    compare.add_argument("--results", type=Path, help="append the table to this file, for example models/RESULTS.md")
    compare.set_defaults(run=_compare)

    chained = commands.add_parser(
        "chain", parents=[data], help="retrieval alone beside rankers over it, and where good items are lost"
    )
    chained.add_argument("--bundles", type=Path, nargs="+", required=True, help="of rankers over one retriever")
    chained.add_argument("--k", type=_numbers, default=(10, 20), help="list lengths, 10,20 by default")
    chained.add_argument("--json", type=Path, help="also write the figures there")
    chained.add_argument("--results", type=Path, help="append the tables to this file")
    chained.set_defaults(run=_chain)

    cases = commands.add_parser(
        "cases", parents=[data], help="write test cases as JSON lines, to be replayed over HTTP"
    )
    cases.add_argument("--bundle", required=True, type=Path, help="whose catalog the cases are in")
    cases.add_argument("--limit", type=_count, default=2000, help="cases at most, drawn at random")
    cases.add_argument("--seed", type=int, default=0, help="of the draw")
    cases.add_argument("--out", required=True, type=Path, help="file to write")
    cases.set_defaults(run=_cases)

    moved = commands.add_parser("transfer", help="train on some catalogs and measure on another")
    moved.add_argument("--model", required=True)
    moved.add_argument("--train", required=True, type=_located, nargs="+", metavar="LAYOUT:PATH")
    moved.add_argument("--tune", required=True, type=_located, metavar="LAYOUT:PATH", help="older than the test")
    moved.add_argument("--test", required=True, type=_located, metavar="LAYOUT:PATH", help="last events are asked for")
    moved.add_argument("--out", required=True, type=Path, help="directory of checkpoints and weights")
    moved.add_argument("--set", action="append", type=_pair, default=[], metavar="key=value", help="any option")
    moved.add_argument("--resume", action="store_true", help="go on with what stands in OUT")
    moved.add_argument("--json", type=Path, help="also write the figures there")
    moved.add_argument("--results", type=Path, help="append the tables to this file")
    moved.set_defaults(run=_transfer)

    widths = commands.add_parser("widths", parents=[data], help="what a beam's width buys, beside scoring every item")
    widths.add_argument("--bundle", required=True, type=Path, help="a bundle that generates")
    widths.add_argument("--widths", type=_numbers, default=(10, 20, 50, 100), help="of the beam, default 10,20,50,100")
    widths.add_argument("--k", type=_numbers, default=(10,), help="length of the lists, default 10")
    widths.add_argument("--limit", type=_count, help="at most this many cases, drawn with --seed; default all")
    widths.add_argument(
        "--exhaustive", type=_count, default=200, help="cases for which every item is scored, default 200"
    )
    widths.add_argument("--seed", type=int, default=0)
    widths.set_defaults(run=_widths)

    joining = commands.add_parser("join", help="a generator's bundle with an encoder beside it, or searched otherwise")
    joining.add_argument("--generator", required=True, type=Path, help="a bundle that generates")
    joining.add_argument("--dense", type=Path, help="bundle of an encoder over the same catalog")
    joining.add_argument("--out", required=True, type=Path, help="bundle directory to write")
    joining.add_argument(
        "--set", action="append", type=_pair, default=[], metavar="key=value", help="beams and the like"
    )
    joining.add_argument("--overwrite", action="store_true", help="replace what stands at OUT")
    joining.set_defaults(run=_join)

    bandits = commands.add_parser("off-policy", help="two policies estimated from each other's logs, beside the truth")
    bandits.add_argument("--events", required=True, type=Path, help="directory that holds random/ and bts/")
    bandits.add_argument("--campaign", type=_names, default=CAMPAIGNS, help="names of files, default men,women")
    bandits.add_argument("--on-bad-row", choices=("fail", "skip"), default="fail")
    bandits.add_argument("--seed", type=int, default=0, help="of the bootstrap and of the folds")
    bandits.add_argument("--json", type=Path, help="also write the figures there")
    bandits.add_argument("--results", type=Path, help="append the tables to this file")
    bandits.set_defaults(run=_off_policy)

    compacting = commands.add_parser("compact", help="make Parquet of the service's log, without whom it has to forget")
    compacting.add_argument("directory", type=Path, help="the one that SEQUITUR_LOG names")
    compacting.add_argument("--on-bad-row", choices=("fail", "skip"), default="fail")
    compacting.set_defaults(run=_compact)

    stolen = commands.add_parser(
        "extract",
        parents=[data],
        help="copy what a service of this machine serves from its answers, and judge the copy",
    )
    stolen.add_argument(
        "--url", required=True, help="of the service; EXTRACT_API_KEY holds its key, where it wants one"
    )
    stolen.add_argument("--bundle", required=True, type=Path, help="what it serves, to judge by")
    stolen.add_argument("--arms", type=_names, default=extraction.ARMS, help="autoregressive,random by default")
    stolen.add_argument("--sequences", type=_numbers, default=(50, 200, 800), help="made-up histories, 50,200,800")
    stolen.add_argument("--lists", type=_numbers, default=(100, 10), help="lengths of the lists asked for, 100,10")
    stolen.add_argument("--length", type=_count, default=20, help="items of a history, 20; as many questions each")
    stolen.add_argument("--steps", type=_count, default=1_000, help="of learning, 1000")
    stolen.add_argument("--at-once", type=_count, default=16, help="histories under way together, 16")
    stolen.add_argument("--limit", type=_count, default=1_000, help="cases of real users to judge by, 1000")
    stolen.add_argument("--seed", type=int, default=1)
    stolen.add_argument("--replay", action="store_true", help="send the log's busiest day instead, as a shop would")
    stolen.add_argument("--results", type=Path, help="append the table to this file")
    stolen.set_defaults(run=_extract)

    listing = commands.add_parser("list", help="every system: paper, stage, status, defaults")
    listing.set_defaults(run=_list)

    inspect = commands.add_parser("inspect", help="what a bundle says of itself, after every digest was checked")
    inspect.add_argument("bundle", type=Path)
    inspect.set_defaults(run=_inspect)
    return parser


if __name__ == "__main__":
    sys.exit(main())
