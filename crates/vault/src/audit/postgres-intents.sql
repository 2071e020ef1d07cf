-- What the log of an installation has besides: changes whose outcome is not recorded yet.
CREATE TABLE audit_intents (
    id        text COLLATE "C" PRIMARY KEY,
    owner     text COLLATE "C" NOT NULL,
    caller    text COLLATE "C" NOT NULL,
    origin    text COLLATE "C" NOT NULL,
    operation text COLLATE "C" NOT NULL,
    key       text COLLATE "C",
    version   text COLLATE "C",
    disk      text COLLATE "C",
    detail    text COLLATE "C"
);
