"""Which modules of the standard library the embedded corpus reads, by family."""

FAMILIES: dict[str, tuple[str, ...]] = {
    "language": ("builtins", "abc", "types", "typing", "dataclasses", "enum", "copy", "functools", "operator", "contextlib", "contextvars", "weakref", "gc"),
    "text": ("string", "re", "textwrap", "difflib", "pprint", "reprlib", "shlex"),
    "numbers": ("math", "cmath", "decimal", "fractions", "random", "statistics", "secrets", "colorsys"),
    "containers": ("collections", "array", "bisect", "heapq", "itertools", "graphlib", "queue"),
    "time": ("datetime", "time", "calendar", "zoneinfo", "sched", "timeit"),
    "files": ("os", "os.path", "pathlib", "io", "shutil", "tempfile", "glob", "fnmatch", "filecmp", "fileinput", "linecache", "stat"),
    "archives": ("zipfile", "tarfile", "gzip", "bz2", "lzma", "zlib"),
    "data formats": ("csv", "json", "tomllib", "configparser", "plistlib", "html", "html.parser", "xml.etree.ElementTree", "xml.dom.minidom", "xml.sax.saxutils"),
    "persistence": ("pickle", "shelve", "dbm", "sqlite3", "struct"),
    "encoding and hashing": ("base64", "binascii", "quopri", "hashlib", "hmac", "uuid"),
    "processes": ("subprocess", "signal", "multiprocessing", "multiprocessing.pool", "multiprocessing.shared_memory", "multiprocessing.managers", "concurrent.futures", "threading", "select", "selectors", "mmap", "asyncio"),
    "program": ("sys", "sysconfig", "platform", "atexit", "warnings", "errno", "getopt", "argparse", "getpass", "cmd", "logging", "logging.handlers"),
    "web": ("urllib.parse", "urllib.request", "urllib.error", "urllib.robotparser", "http", "http.client", "http.server", "http.cookies", "http.cookiejar", "webbrowser", "wsgiref.simple_server", "xmlrpc.client", "socket", "socketserver", "ssl", "ipaddress", "mimetypes"),
    "testing": ("unittest", "unittest.mock", "doctest", "pdb", "trace", "traceback", "tracemalloc", "faulthandler", "profile", "pstats"),
    "mail and transfer": ("email", "email.message", "email.utils", "email.generator", "email.parser", "email.header", "smtplib", "imaplib", "poplib", "ftplib", "mailbox", "netrc"),
    "languages of the world": ("gettext", "locale", "codecs", "unicodedata", "stringprep"),
    "code about code": ("ast", "dis", "inspect", "tokenize", "code", "codeop", "py_compile", "compileall", "pkgutil", "runpy", "importlib", "importlib.metadata", "importlib.resources", "importlib.util", "zipapp", "venv"),
    "sound": ("wave",),
}

# Topics that only gather the text of other topics, or of docstrings that are read anyway.
GATHERED_TOPICS = frozenset({"augassign", "compound", "debugger", "dynamic-features", "else", "execmodel", "id-classes", "in", "specialnames", "string-methods", "typesseq-mutable"})

MODULES: tuple[str, ...] = tuple(module for modules in FAMILIES.values() for module in modules)
