#!/usr/bin/env python3
"""Makes the man pages of section 3 from the comments of the public header.

    make_man_pages.py --list HEADER             prints the names of the pages
    make_man_pages.py --write FOLDER HEADER     writes them (mdoc)
    make_man_pages.py --check FOLDER HEADER [PAGE...]
                                                checks what was written, and the further pages,
                                                with mandoc; exit 77 if that is missing

What the header must keep to, and what comes of it:

  - It opens with a comment: what the library is, and a list of rules for every function. That
    becomes pebble.3, with a list of all that there is.
  - A line "/* ==== Name === */" opens a section.
  - A comment that ends on the line above a declaration describes it, and makes a page of it. A
    public function must have one. What else has none joins the page that it belongs to.
  - In a comment: "  name  text" lines, indented by two, describe parameters; lines indented by
    four or more are an example; "Errors:" or "Errors as" and what follows in its paragraph are
    the errors; a line that starts with "Returns" opens what is returned.
"""

import argparse
import datetime
import os
import re
import shutil
import subprocess
import sys
import textwrap

SECTION = re.compile(r"/\* ={4} (.*?) =+ \*/")
FUNCTION = re.compile(r"(?P<type>.*?[\s*])(?P<name>pebble_\w+)\s*\((?P<args>.*?)\)"
                      r"(\s*PEBBLE_PRINTF\([^)]*\))?\s*;", re.S)


class HeaderError(Exception):
    """The header does not keep to the rules above."""


# ---- Reading the header ----

class Declaration:
    """One declaration or macro: its kind, name, text and (perhaps) comment."""

    def __init__(self, section, comment, text, line):
        self.section = section
        self.comment = comment
        self.text = text
        self.line = line
        self.kind, self.name = classify(text, line)

    @property
    def described(self):
        return bool(self.comment) or (self.kind in ("struct", "enum") and "/*" in self.text)

    def mentions(self, name):
        return re.search(rf"\b{name}\b", self.text + "\n" + (self.comment or "")) is not None


def strip_comments(text):
    return re.sub(r"/\*.*?\*/", " ", text, flags=re.S)


def classify(text, line):
    code = strip_comments(text).strip()
    if code.startswith("#define"):
        return "macro", re.match(r"#define\s+(\w+)", code).group(1)
    if code.startswith("PEBBLE_API"):
        match = FUNCTION.fullmatch(code)
        if not match:
            raise HeaderError(f"line {line}: cannot read this function: {code}")
        return "function", match.group("name")
    for pattern, kind in (
        (r"typedef\s+.*\(\*\s*(\w+)\s*\)\s*\(.*\)\s*;", "function type"),
        (r"typedef\s+enum\s+\w+\s*\{.*\}\s*(\w+)\s*;", "enum"),
        (r"typedef\s+struct\s+\w+\s*\{.*\}\s*(\w+)\s*;", "struct"),
        (r"struct\s+(\w+)\s*\{.*\}\s*;", "struct"),
        (r"typedef\s+struct\s+\w+\s+(\w+)\s*;", "opaque"),
    ):
        match = re.fullmatch(pattern, code, re.S)
        if match:
            return kind, match.group(1)
    raise HeaderError(f"line {line}: cannot read this declaration: {code}")


def unwrap_comment(lines):
    """The text of a comment whose lines begin with "/* " and " * "."""
    text = "\n".join(lines).strip()
    text = text[2:-2] if text.endswith("*/") else text[2:]
    out = []
    for number, line in enumerate(text.split("\n")):
        if number > 0:
            line = re.sub(r"^ \* ?", "", line)
        elif line.startswith(" "):
            line = line[1:]
        out.append(line.rstrip())
    return "\n".join(out).strip("\n")


def read_comment(lines, at):
    end = at
    while "*/" not in lines[end]:
        end += 1
    return unwrap_comment(lines[at:end + 1]), end + 1


def read_declaration(lines, at):
    """Up to the ';' that ends it, or for a macro to its last line."""
    end = at
    if lines[at].startswith("#define"):
        while lines[end].endswith("\\"):
            end += 1
        return "\n".join(lines[at:end + 1]), end + 1
    while True:
        text = "\n".join(lines[at:end + 1])
        code = strip_comments(text)
        if code.rstrip().endswith(";") and code.count("{") == code.count("}"):
            return text, end + 1
        end += 1
        if end == len(lines):
            raise HeaderError(f"line {at + 1}: a declaration without an end")


def skip_conditional(lines, at):
    """Past an #if for the compiler's sake, not for the reader's."""
    depth = 0
    while True:
        if lines[at].startswith("#if"):
            depth += 1
        elif lines[at].startswith("#endif"):
            depth -= 1
        at += 1
        if depth == 0:
            return at


def is_private(declaration):
    return "PEBBLE__" in declaration.name


class Header:
    def __init__(self, path):
        with open(path, encoding="utf-8") as file:
            self.text = file.read()
        lines = self.text.split("\n")
        self.opening, at = read_comment(lines, 0)
        self.declarations = []
        section = comment = None
        while at < len(lines):
            line = lines[at]
            if SECTION.match(line):
                section = SECTION.match(line).group(1)
                comment = None
                at += 1
            elif line.startswith("/*"):
                comment, at = read_comment(lines, at)
            elif re.match(r"#if(def __cplusplus| defined)", line):
                at = skip_conditional(lines, at)
            elif line == "" or re.match(r"#(ifndef|include|endif|undef)|#define PEBBLE_H$", line):
                comment = None
                at += 1
            else:
                text, after = read_declaration(lines, at)
                declaration = Declaration(section, comment, text, at + 1)
                comment = None
                at = after
                trailing = re.search(r";\s*/\*(.*?)\*/$", text, re.S)
                if trailing and not declaration.comment:
                    words = trailing.group(1).strip()
                    declaration.comment = words[0].upper() + words[1:].rstrip(".") + "."
                if not is_private(declaration):
                    self.declarations.append(declaration)
        self.drop_forward_declarations()

    def drop_forward_declarations(self):
        defined = {d.name for d in self.declarations if d.kind == "struct"}
        self.declarations = [d for d in self.declarations
                             if not (d.kind == "opaque" and d.name in defined)]

    def sections(self):
        return list(dict.fromkeys(d.section for d in self.declarations))


# ---- Which page each declaration is on ----

class Page:
    def __init__(self, declaration):
        self.main = declaration
        self.joined = []

    @property
    def name(self):
        return self.main.name

    @property
    def all(self):
        return sorted([self.main, *self.joined], key=lambda d: d.line)


def home_of(declaration, pages):
    """The page that a declaration without a comment belongs to."""
    by_name = {page.name: page for page in pages}
    if declaration.name.endswith("_INIT"):
        owner = declaration.name[:-len("_INIT")].lower()
        if owner in by_name:
            return by_name[owner]
    near = [page for page in pages if page.main.section == declaration.section]
    for page in near:  # it is made of what the page is about
        if declaration.kind == "enum" and declaration.mentions(page.name):
            return page
    for page in near:
        if page.main.mentions(declaration.name):
            return page
    if not near:
        raise HeaderError(f"line {declaration.line}: {declaration.name} has no comment, and "
                          "there is no page that it could be on")
    return near[0]


def make_pages(header):
    for declaration in header.declarations:
        if declaration.kind == "function" and not declaration.comment:
            raise HeaderError(f"line {declaration.line}: {declaration.name} has no comment")
    pages = [Page(d) for d in header.declarations if d.described]
    homes = [(d, home_of(d, pages)) for d in header.declarations if not d.described]
    for declaration, page in homes:
        page.joined.append(declaration)
    return pages


# ---- The language of man pages ----

def escape(text):
    text = text.replace("\\", "\\e")
    return "\\&" + text if text.startswith((".", "'")) else text


def escape_code(text):
    for character, name in (("\\", "\\e"), ("`", "\\(ga"), ("'", "\\(aq"), ("-", "\\-"),
                            ("^", "\\(ha"), ("~", "\\(ti")):
        text = text.replace(character, name)
    return "\\&" + text if text.startswith(".") else text


def quoted(text):
    return '"' + text.replace("\\", "\\e").replace('"', "\\(dq") + '"'


class Writer:
    """Lines of mdoc, for one page among others that it may refer to."""

    WORD = re.compile(r"(?P<before>[(\"\[]*)(?P<name>(?i:pebble)_\w+)(?P<call>\(\))?"
                      r"(?P<after>[.,:;)\]!?]*)")

    def __init__(self, page_of):
        self.page_of = page_of
        self.referred = set()
        self.lines = []

    def add(self, *lines):
        self.lines.extend(lines)

    def prose(self, text):
        """Words, with names of the library marked. A macro starts a line of its own."""
        plain = []
        for word in text.split():
            macro = self.name_macro(word)
            if macro is None:
                plain.append(word)
                continue
            self.flush(plain)
            self.add(macro)
        self.flush(plain)

    def flush(self, words):
        """A sentence starts on a line of its own, as mdoc wants it."""
        for sentence in re.split(r"(?<=[.!?]) +", " ".join(words)):
            self.add(*(escape(line) for line in textwrap.wrap(
                sentence, 90, break_long_words=False, break_on_hyphens=False)))
        words.clear()

    def name_macro(self, word):
        match = self.WORD.fullmatch(word)
        if not match or '"' in match.group("before"):
            return None
        name = match.group("name")
        if name not in self.page_of and not name.startswith("PEBBLE_"):
            return None
        self.referred.add(name)
        if match.group("call"):
            macro = f"Fn {name}"
        elif name.startswith("PEBBLE_"):
            macro = f"Dv {name}"
        else:
            macro = f"Vt {name}"
        marks = [*match.group("before"), "." + macro, *match.group("after")]
        if match.group("before"):  # a delimiter that opens goes behind the macro's name
            macro_name, argument = macro.split()
            marks = [f".{macro_name}", *match.group("before"), argument, *match.group("after")]
        return " ".join(marks)

    def code(self, text):
        self.add(".Bd -literal -offset indent")
        self.add(*(escape_code(line) for line in textwrap.dedent(text).strip("\n").split("\n")))
        self.add(".Ed")


# ---- What a comment says ----

def split_blocks(comment):
    """Yields ("text", str), ("terms", [(name, str)]), ("bullets", [str]), ("code", str)."""
    lines = comment.split("\n")
    at = 0

    def indent_of(line):
        return len(line) - len(line.lstrip())

    while at < len(lines):
        start = at
        if lines[at] == "":
            at += 1
        elif indent_of(lines[at]) >= 4:
            while at < len(lines) and (lines[at] == "" or indent_of(lines[at]) >= 4):
                at += 1
            yield "code", "\n".join(lines[start:at])
        elif indent_of(lines[at]) >= 2:
            items = []
            while at < len(lines) and indent_of(lines[at]) >= 2:
                line = lines[at]
                term = re.match(r"  (\w+(?:, \w+)*) {1,}(?= |\S)(.*)", line)
                if line.startswith("  - "):
                    items.append([None, line[4:]])
                elif indent_of(line) == 2 and term:
                    items.append([term.group(1), term.group(2).strip()])
                elif items:
                    items[-1][1] += " " + line.strip()
                else:
                    raise HeaderError(f"a comment with a line that belongs to nothing: {line}")
                at += 1
            if items[0][0] is None:
                yield "bullets", [text for _, text in items]
            else:
                yield "terms", [tuple(item) for item in items]
        else:
            while at < len(lines) and lines[at] != "" and indent_of(lines[at]) == 0:
                at += 1
                if at < len(lines) and lines[at].startswith("Returns "):
                    break
            yield "text", " ".join(lines[start:at])


def split_comment(comment):
    """The blocks of the description, of what is returned, and of the errors."""
    description, returns, errors = [], [], []
    for kind, content in split_blocks(comment):
        if kind != "text":
            description.append((kind, content))
            continue
        match = re.search(r"(?:^|(?<=[.:;)] ))Errors(?=:| as )", content)
        if match:
            errors.append(("text", content[match.start():]))
            content = content[:match.start()].strip()
        if content.startswith("Returns "):
            returns.append(("text", content))
        elif content:
            description.append(("text", content))
    return description, returns, errors


def write_blocks(writer, blocks):
    for number, (kind, content) in enumerate(blocks):
        if kind == "text":
            if number > 0:
                writer.add(".Pp")
            writer.prose(content)
        elif kind == "code":
            writer.code(content)
        elif kind == "bullets":
            writer.add(".Bl -bullet")
            for text in content:
                writer.add(".It")
                writer.prose(text)
            writer.add(".El")
        else:
            writer.add(".Bl -tag -width Ds")
            for name, text in content:
                writer.add(".It Fa " + " , ".join(name.split(", ")))
                writer.prose(text)
            writer.add(".El")


def summary_of(declaration):
    """One line, for NAME and lists: the first sentence or what begins it."""
    if not declaration.comment:
        words = {"enum": "values and what they mean", "struct": "its members"}
        return words.get(declaration.kind, declaration.kind)
    description, returns, _ = split_comment(declaration.comment)
    text = next(text for kind, text in description + returns if kind == "text")
    text = re.sub(rf"^{declaration.name}\(.*?\{{ body \}}:? *", "", text)
    # The longest start that still makes sense on one line.
    text = re.match(r".*?(?:[.:](?=\s|$)|$)", text).group(0)
    for stop in (";", ", for example", ", in the", ", and", " ("):
        if len(text) > 70 and stop in text:
            text = text[:text.index(stop)]
    if text.count("(") > text.count(")"):
        text = text[:text.rindex("(")]
    text = text.rstrip(".:;, ")
    if text[:2].istitle():
        text = text[0].lower() + text[1:]
    return text


# ---- Pages ----

def macro_head(declaration):
    """What a user of a macro writes. A constant's value is part of its meaning."""
    match = re.match(r"#define\s+(\w+(?:\([^)]*\))?)(?P<value>.*)", declaration.text, re.S)
    value = match.group("value").strip()
    if declaration.name == "PEBBLE_ERRORS" or "\n" in value or len(value) > 60 \
            or "{" in value or "(" in match.group(1):
        return "#define " + match.group(1)
    return f"#define {match.group(1)} {value}"


def split_arguments(text):
    arguments, depth, start = [], 0, 0
    for at, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and depth == 0:
            arguments.append(text[start:at])
            start = at + 1
    arguments.append(text[start:])
    return [" ".join(argument.split()) for argument in arguments]


def write_synopsis(writer, page):
    writer.add(".Sh SYNOPSIS", ".In pebble.h")
    others = [d for d in page.all if d.kind != "function"]
    if others:
        writer.add(".Bd -literal")
        for number, declaration in enumerate(others):
            text = (macro_head(declaration) if declaration.kind == "macro"
                    else declaration.text)
            if number > 0 and "\n" in text:
                writer.add("")
            writer.add(*(escape_code(line) for line in text.split("\n")))
        writer.add(".Ed")
    for declaration in page.all:
        if declaration.kind != "function":
            continue
        code = strip_comments(declaration.text).replace("PEBBLE_API", "").strip()
        match = FUNCTION.fullmatch(code)
        writer.add(f".Ft {quoted(' '.join(match.group('type').split()))}")
        writer.add(f".Fo {declaration.name}")
        writer.add(*(f".Fa {quoted(argument)}"
                     for argument in split_arguments(match.group("args"))))
        writer.add(".Fc")


def errors_table(declaration):
    return re.findall(r'X\((\w+),\s*"(.*?)"\)', declaration.text)


def write_page(page, pages, date, version):
    names = [d.name for d in page.all]
    page_of = {d.name: p.name for p in pages for d in p.all}
    writer = Writer(page_of)
    writer.add('.\\" Made from pebble.h by tools/make_man_pages.py: change the comments there.')
    writer.add(f".Dd {date}", f".Dt {page.name.upper()} 3", f".Os Pebble {version}")
    writer.add(".Sh NAME")
    ordered = [page.name, *(name for name in names if name != page.name)]
    writer.add(*(f".Nm {name} ," for name in ordered[:-1]), f".Nm {ordered[-1]}")
    writer.add(f".Nd {escape(summary_of(page.main))}")
    writer.add(".Sh LIBRARY", "Pebble (libpebble, \\-lpebble)")
    write_synopsis(writer, page)

    description, returns, errors = split_comment(page.main.comment or "")
    writer.add(".Sh DESCRIPTION")
    if description:
        write_blocks(writer, description)
    elif page.main.kind in ("enum", "struct"):
        writer.add("What each stands for is said above.")
    else:
        write_blocks(writer, returns)
    if page.name == "PEBBLE_ERRORS":
        writer.add(".Bl -tag -width Ds")
        for name, text in errors_table(page.main):
            writer.add(f".It Dv PEBBLE_{name}", escape(text[0].upper() + text[1:] + "."))
        writer.add(".El")
    writer.add(".Pp", "What holds for all functions is in", ".Xr pebble 3 .")

    returns_error = page.main.kind == "function" and \
        re.match(r"PEBBLE_API\s+pebble_error\s", page.main.text)
    if description and returns:
        writer.add(".Sh RETURN VALUES")
        write_blocks(writer, returns)
    elif returns_error:
        writer.add(".Sh RETURN VALUES", ".Dv PEBBLE_OK , No or an error.")
    if errors:
        writer.add(".Sh ERRORS")
        write_blocks(writer, [("text", re.sub(r"^Errors: *", "", text)) for _, text in errors])

    near = [p.name for p in pages if p.main.section == page.main.section]
    linked = {page_of[name] for name in writer.referred if name in page_of}
    if returns_error:
        linked |= {"PEBBLE_ERRORS", "pebble_error_message"} & set(page_of.values())
    linked = (linked | set(near)) - {page.name}
    write_see_also(writer, linked | {"pebble"})
    return "\n".join(writer.lines) + "\n"


def write_see_also(writer, names):
    writer.add(".Sh SEE ALSO")
    references = [f"{name} 3" for name in sorted(names, key=str.lower)] + ["pebble 7"]
    writer.add(*(f".Xr {reference} ," for reference in references[:-1]),
               f".Xr {references[-1]}")


def write_overview(header, pages, date, version):
    """pebble.3: what the header opens with, and a list of all."""
    page_of = {d.name: p.name for p in pages for d in p.all}
    writer = Writer(page_of)
    writer.add('.\\" Made from pebble.h by tools/make_man_pages.py: change the comments there.')
    title, _, body = header.opening.partition("\n")
    writer.add(f".Dd {date}", ".Dt PEBBLE 3", f".Os Pebble {version}")
    writer.add(".Sh NAME", ".Nm pebble", f".Nd {title.partition(' - ')[2].rstrip('.')}")
    writer.add(".Sh LIBRARY", "Pebble (libpebble, \\-lpebble)")
    writer.add(".Sh SYNOPSIS", ".In pebble.h", ".Sh DESCRIPTION")
    body = re.sub(r"Copyright.*\n", "", body)
    body = body.replace("This header reads", "The list below reads")
    write_blocks(writer, list(split_blocks(body)))
    for section in header.sections():
        writer.add(f".Ss \\&{section}",  # a first word such as "In" is no macro
                    ".Bl -tag -width Ds")
        for page in pages:
            if page.main.section == section:
                writer.add(f".It Xr {page.name} 3", escape(summary_of(page.main)))
        writer.add(".El")
    writer.add(".Sh SEE ALSO", ".Xr pebble 7")
    return "\n".join(writer.lines) + "\n"


def make_all(header, date, version):
    """The text of each file by its name."""
    pages = make_pages(header)
    files = {"pebble.3": write_overview(header, pages, date, version)}
    for page in pages:
        files[page.name + ".3"] = write_page(page, pages, date, version)
        for declaration in page.joined:
            files[declaration.name + ".3"] = f".so man3/{page.name}.3\n"
    return files


# ---- Commands ----

def page_date(path):
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    seconds = int(epoch) if epoch else os.stat(path).st_mtime
    date = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return f"{date:%B} {date.day}, {date.year}"


def write_all(folder, files):
    os.makedirs(folder, exist_ok=True)
    for name, text in files.items():
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            file.write(text)


def public_functions(header):
    """Found without the reader above, whose check this is part of."""
    code = re.sub(r"^#.*(?:\\\n.*)*", "", strip_comments(header.text), flags=re.M)
    return re.findall(r"PEBBLE_API\s[^;(]*?(\w+)\s*\(", code)


def check(folder, header, expected_files, more_pages):
    problems = []
    functions = public_functions(header)
    if not functions:
        problems.append("the header has no public function")
    for name in functions:
        path = os.path.join(folder, name + ".3")
        if not os.path.exists(path):
            problems.append(f"{name} has no page")
        elif f".Fo {name}\n" not in read(path):
            problems.append(f"{path} does not show {name}")
    paths = []
    for name in expected_files:
        path = os.path.join(folder, name)
        text = read(path) if os.path.exists(path) else ""
        alias = re.match(r"\.so man3/(.*)\n", text)
        if alias and not os.path.exists(os.path.join(folder, alias.group(1))):
            problems.append(f"{path} refers to a page that is not there")
        if not alias:
            paths.append(path)
    known = {name[:-2] for name in expected_files}
    for path in [*paths, *more_pages]:
        for name in re.findall(r"^\.(?:It )?Xr (pebble\w*) 3", read(path), re.M | re.I):
            if name not in known:
                problems.append(f"{path} refers to {name}(3), which is not there")
    lint = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", *paths, *more_pages],
                          capture_output=True, text=True, check=False)
    if lint.returncode != 0 or lint.stdout:
        problems.append(lint.stdout + lint.stderr)
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{len(functions)} functions, {len(paths) + len(more_pages)} pages, "
          f"{len(problems)} problems")
    return 1 if problems else 0


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def main():
    parser = argparse.ArgumentParser(description="Man pages from the public header.")
    command = parser.add_mutually_exclusive_group(required=True)
    command.add_argument("--list", action="store_true")
    command.add_argument("--write", metavar="FOLDER")
    command.add_argument("--check", metavar="FOLDER")
    parser.add_argument("--version", default="")
    parser.add_argument("header")
    parser.add_argument("pages", nargs="*")
    arguments = parser.parse_args()
    if arguments.check and shutil.which("mandoc") is None:
        print("skipped: no mandoc")
        return 77
    try:
        header = Header(arguments.header)
        files = make_all(header, page_date(arguments.header), arguments.version)
    except HeaderError as error:
        print(f"{arguments.header}: {error}", file=sys.stderr)
        return 1
    if arguments.list:
        print("\n".join(files))
    elif arguments.write:
        write_all(arguments.write, files)
    else:
        return check(arguments.check, header, list(files), arguments.pages)
    return 0


if __name__ == "__main__":
    sys.exit(main())
