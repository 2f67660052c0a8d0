// The tables, as numbered migrations that only go forward. A migration that has been released is never
// edited: a store somewhere was made by it. `user_version` of the file is the number of the last one.

/** "Htch": tells our file from any other SQLite database. */
export const APPLICATION_ID = 0x48746368;

export type Migration = { readonly version: number; readonly what: string; readonly sql: string };

export const MIGRATIONS: readonly Migration[] = [
  {
    version: 1,
    what: 'projects, keys, sandboxes, ledger',
    sql: `
      CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;

      CREATE TABLE projects (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        created_at_ms INTEGER NOT NULL
      ) STRICT;

      CREATE TABLE api_keys (
        id TEXT PRIMARY KEY,
        project_id TEXT NOT NULL REFERENCES projects (id),
        name TEXT NOT NULL,
        sha256 TEXT NOT NULL UNIQUE,
        created_at_ms INTEGER NOT NULL,
        last_used_at_ms INTEGER,
        revoked_at_ms INTEGER
      ) STRICT;
      CREATE UNIQUE INDEX api_keys_name ON api_keys (project_id, name) WHERE revoked_at_ms IS NULL;

      CREATE TABLE sandboxes (
        id TEXT PRIMARY KEY,
        project_id TEXT NOT NULL REFERENCES projects (id),
        name TEXT NOT NULL,
        state TEXT NOT NULL,
        image_id TEXT NOT NULL,
        kernel_id TEXT,
        spec TEXT NOT NULL,
        status TEXT NOT NULL,
        created_at_ms INTEGER NOT NULL,
        changed_at_ms INTEGER NOT NULL,
        generation INTEGER NOT NULL,
        start_count INTEGER NOT NULL,
        open_compute_since_ms INTEGER,
        open_pause_since_ms INTEGER,
        alive_at_ms INTEGER,
        last_op_id TEXT NOT NULL
      ) STRICT;
      CREATE UNIQUE INDEX sandboxes_name ON sandboxes (project_id, name) WHERE state <> 'deleted';
      CREATE INDEX sandboxes_newest ON sandboxes (created_at_ms DESC, id DESC);
      -- There may be a hundred tombstones to each sandbox that lives.
      CREATE INDEX sandboxes_live ON sandboxes (created_at_ms DESC, id DESC) WHERE state <> 'deleted';
      CREATE INDEX sandboxes_open ON sandboxes (open_compute_since_ms) WHERE open_compute_since_ms IS NOT NULL;
      CREATE INDEX sandboxes_tombstones ON sandboxes (changed_at_ms) WHERE state = 'deleted';

      CREATE TABLE ledger (
        sequence INTEGER PRIMARY KEY,
        id TEXT NOT NULL,
        kind TEXT NOT NULL,
        reason TEXT,
        at_ms INTEGER NOT NULL,
        project_id TEXT NOT NULL,
        sandbox_id TEXT,
        snapshot_id TEXT,
        source_snapshot_id TEXT,
        parent_id TEXT,
        backend TEXT,
        shape TEXT NOT NULL,
        op_id TEXT NOT NULL,
        evidence TEXT,
        emitted_at_ms INTEGER NOT NULL,
        monotonic_ms REAL NOT NULL,
        boot_id TEXT NOT NULL,
        previous_hash TEXT NOT NULL,
        hash TEXT NOT NULL
      ) STRICT;
      CREATE INDEX ledger_sandbox ON ledger (sandbox_id, sequence);

      CREATE TABLE images (
        id TEXT PRIMARY KEY,
        name TEXT UNIQUE,
        digest TEXT NOT NULL UNIQUE,
        body TEXT NOT NULL,
        created_at_ms INTEGER NOT NULL
      ) STRICT;

      CREATE TABLE kernels (
        id TEXT PRIMARY KEY,
        digest TEXT NOT NULL UNIQUE,
        body TEXT NOT NULL,
        created_at_ms INTEGER NOT NULL
      ) STRICT;
    `,
  },
  {
    version: 2,
    what: 'operations, events, intents, requests, uids, settings, heartbeats',
    sql: `
      CREATE TABLE operations (
        id TEXT PRIMARY KEY,
        verb TEXT NOT NULL,
        project_id TEXT,
        target_id TEXT,
        actor TEXT NOT NULL,
        state TEXT NOT NULL,
        step TEXT,
        done REAL,
        total REAL,
        started_at_ms INTEGER NOT NULL,
        ended_at_ms INTEGER,
        error TEXT,
        traceparent TEXT
      ) STRICT;
      CREATE INDEX operations_newest ON operations (started_at_ms DESC);
      CREATE INDEX operations_running ON operations (started_at_ms) WHERE state = 'running';
      CREATE INDEX operations_target ON operations (target_id, started_at_ms DESC) WHERE target_id IS NOT NULL;
      CREATE INDEX operations_ended ON operations (ended_at_ms) WHERE ended_at_ms IS NOT NULL;

      CREATE TABLE events (
        cursor INTEGER PRIMARY KEY AUTOINCREMENT,
        at_ms INTEGER NOT NULL,
        type TEXT NOT NULL,
        project_id TEXT,
        sandbox_id TEXT,
        sandbox_name TEXT,
        op_id TEXT,
        actor TEXT NOT NULL,
        detail TEXT NOT NULL
      ) STRICT;
      CREATE INDEX events_sandbox ON events (sandbox_id, cursor) WHERE sandbox_id IS NOT NULL;
      CREATE INDEX events_op ON events (op_id, cursor) WHERE op_id IS NOT NULL;
      CREATE INDEX events_age ON events (at_ms);

      CREATE TABLE intents (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        kind TEXT NOT NULL,
        project_id TEXT NOT NULL REFERENCES projects (id),
        sandbox_id TEXT,
        reserved_name TEXT,
        op_id TEXT NOT NULL,
        created_at_ms INTEGER NOT NULL,
        detail TEXT NOT NULL
      ) STRICT;
      CREATE UNIQUE INDEX intents_name ON intents (project_id, reserved_name) WHERE reserved_name IS NOT NULL;
      CREATE INDEX intents_sandbox ON intents (sandbox_id) WHERE sandbox_id IS NOT NULL;

      CREATE TABLE requests (
        api_key_id TEXT NOT NULL,
        key TEXT NOT NULL,
        request_hash TEXT NOT NULL,
        op_id TEXT NOT NULL,
        target_id TEXT,
        created_at_ms INTEGER NOT NULL,
        reply TEXT,
        PRIMARY KEY (api_key_id, key)
      ) STRICT, WITHOUT ROWID;
      CREATE INDEX requests_age ON requests (created_at_ms);

      CREATE TABLE uids (
        uid INTEGER PRIMARY KEY,
        sandbox_id TEXT NOT NULL UNIQUE
      ) STRICT;

      CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;

      CREATE TABLE heartbeats (
        number INTEGER PRIMARY KEY,
        boot_id TEXT NOT NULL UNIQUE,
        at_ms INTEGER NOT NULL,
        monotonic_ms REAL NOT NULL
      ) STRICT;
    `,
  },
  {
    version: 3,
    what: 'published ports',
    sql: `
      CREATE TABLE published_ports (
        host_address TEXT NOT NULL,
        host_port INTEGER NOT NULL,
        sandbox_id TEXT NOT NULL,
        guest_port INTEGER NOT NULL,
        PRIMARY KEY (host_port, host_address)
      ) STRICT, WITHOUT ROWID;
      CREATE INDEX published_ports_sandbox ON published_ports (sandbox_id);
    `,
  },
  {
    version: 4,
    what: 'an image may have several names',
    sql: `
      CREATE TABLE image_names (
        name TEXT PRIMARY KEY,
        image_id TEXT NOT NULL REFERENCES images (id),
        created_at_ms INTEGER NOT NULL
      ) STRICT, WITHOUT ROWID;
      CREATE INDEX image_names_image ON image_names (image_id);
      -- The column stays, empty: what it held lies in the new table.
      INSERT INTO image_names (name, image_id, created_at_ms) SELECT name, id, created_at_ms FROM images WHERE name IS NOT NULL;
      UPDATE images SET name = NULL;
    `,
  },
  {
    version: 5,
    what: 'quotas by tier and project, and who brought an image',
    sql: `
      CREATE TABLE quota_tiers (name TEXT PRIMARY KEY, bounds TEXT NOT NULL) STRICT;
      INSERT INTO quota_tiers (name, bounds) VALUES
        ('FREE', '{"sandboxes":1,"cpus":1,"memoryMiB":512,"diskMiB":1024,"imageMiB":1024}'),
        ('PRO', '{"sandboxes":3,"cpus":6,"memoryMiB":6144,"diskMiB":30720,"imageMiB":10240}'),
        ('ENTERPRISE', '{"sandboxes":10,"cpus":40,"memoryMiB":81920,"diskMiB":1024000,"imageMiB":102400}'),
        ('DEDICATED', '{"sandboxes":50,"cpus":800,"memoryMiB":1638400,"diskMiB":52428800,"imageMiB":1048576}');
      CREATE TABLE project_quotas (
        project_id TEXT PRIMARY KEY REFERENCES projects (id),
        tier TEXT REFERENCES quota_tiers (name),
        bounds TEXT NOT NULL
      ) STRICT, WITHOUT ROWID;
      CREATE TABLE image_owners (
        image_id TEXT NOT NULL REFERENCES images (id),
        project_id TEXT NOT NULL REFERENCES projects (id),
        PRIMARY KEY (image_id, project_id)
      ) STRICT, WITHOUT ROWID;
    `,
  },
  {
    version: 6,
    what: 'leases and labels of kernels and images',
    sql: `
      CREATE TABLE asset_leases (
        id TEXT PRIMARY KEY,
        asset_id TEXT NOT NULL,
        holder TEXT NOT NULL,
        sandbox_id TEXT,
        created_at_ms INTEGER NOT NULL,
        expires_at_ms INTEGER NOT NULL
      ) STRICT, WITHOUT ROWID;
      CREATE INDEX asset_leases_asset ON asset_leases (asset_id);
      CREATE TABLE asset_labels (
        asset_id TEXT NOT NULL,
        key TEXT NOT NULL,
        value TEXT NOT NULL,
        PRIMARY KEY (asset_id, key)
      ) STRICT, WITHOUT ROWID;
    `,
  },
  {
    version: 7,
    what: 'snapshots, and which sandbox stands on which',
    sql: `
      CREATE TABLE snapshots (
        id TEXT PRIMARY KEY,
        project_id TEXT NOT NULL REFERENCES projects (id),
        name TEXT,
        kind TEXT NOT NULL,
        contents TEXT NOT NULL,
        sandbox_id TEXT,
        parent_id TEXT REFERENCES snapshots (id),
        image_id TEXT NOT NULL,
        kernel_id TEXT,
        spec TEXT NOT NULL,
        own_bytes INTEGER NOT NULL,
        apparent_bytes INTEGER NOT NULL,
        created_at_ms INTEGER NOT NULL,
        detail TEXT NOT NULL
      ) STRICT;
      CREATE UNIQUE INDEX snapshots_name ON snapshots (project_id, name) WHERE name IS NOT NULL;
      CREATE INDEX snapshots_parent ON snapshots (parent_id) WHERE parent_id IS NOT NULL;
      CREATE INDEX snapshots_sandbox ON snapshots (sandbox_id, created_at_ms) WHERE sandbox_id IS NOT NULL;
      CREATE TABLE sandbox_lineage (
        sandbox_id TEXT PRIMARY KEY,
        head_id TEXT REFERENCES snapshots (id),
        made_from_id TEXT REFERENCES snapshots (id)
      ) STRICT, WITHOUT ROWID;
      CREATE INDEX sandbox_lineage_head ON sandbox_lineage (head_id) WHERE head_id IS NOT NULL;
      CREATE INDEX sandbox_lineage_made_from ON sandbox_lineage (made_from_id) WHERE made_from_id IS NOT NULL;
    `,
  },
  {
    version: 8,
    what: 'volumes, and which sandbox mounts which',
    sql: `
      CREATE TABLE volumes (
        id TEXT PRIMARY KEY,
        project_id TEXT NOT NULL REFERENCES projects (id),
        name TEXT NOT NULL,
        size_mib INTEGER NOT NULL,
        created_at_ms INTEGER NOT NULL,
        guest_written INTEGER NOT NULL
      ) STRICT;
      CREATE UNIQUE INDEX volumes_name ON volumes (project_id, name);
      CREATE TABLE sandbox_volumes (
        sandbox_id TEXT NOT NULL,
        volume_id TEXT NOT NULL REFERENCES volumes (id),
        read_only INTEGER NOT NULL,
        PRIMARY KEY (sandbox_id, volume_id)
      ) STRICT, WITHOUT ROWID;
      CREATE INDEX sandbox_volumes_volume ON sandbox_volumes (volume_id);
    `,
  },
  {
    version: 9,
    what: 'builds as quotas count them',
    sql: `
      CREATE TABLE builds (
        id TEXT PRIMARY KEY,
        project_id TEXT NOT NULL REFERENCES projects (id),
        begun_at_ms INTEGER NOT NULL,
        ended_at_ms INTEGER
      ) STRICT, WITHOUT ROWID;
      CREATE INDEX builds_project ON builds (project_id, begun_at_ms);
      -- Tiers as they were shipped; what an operator has made of them stays.
      UPDATE quota_tiers SET bounds = json_patch(bounds, '{"builds":1,"buildsPerDay":5,"buildMinutes":5}')
        WHERE name = 'FREE' AND bounds = '{"sandboxes":1,"cpus":1,"memoryMiB":512,"diskMiB":1024,"imageMiB":1024}';
      UPDATE quota_tiers SET bounds = json_patch(bounds, '{"builds":3,"buildsPerDay":100,"buildMinutes":15}')
        WHERE name = 'PRO' AND bounds = '{"sandboxes":3,"cpus":6,"memoryMiB":6144,"diskMiB":30720,"imageMiB":10240}';
      UPDATE quota_tiers SET bounds = json_patch(bounds, '{"builds":10,"buildsPerDay":1000,"buildMinutes":30}')
        WHERE name = 'ENTERPRISE' AND bounds = '{"sandboxes":10,"cpus":40,"memoryMiB":81920,"diskMiB":1024000,"imageMiB":102400}';
      UPDATE quota_tiers SET bounds = json_patch(bounds, '{"builds":50,"buildsPerDay":10000,"buildMinutes":60}')
        WHERE name = 'DEDICATED' AND bounds = '{"sandboxes":50,"cpus":800,"memoryMiB":1638400,"diskMiB":52428800,"imageMiB":1048576}';
    `,
  },
  {
    version: 10,
    what: 'the ledger knows volumes',
    sql: `
      ALTER TABLE ledger ADD COLUMN volume_id TEXT;
    `,
  },
  {
    version: 11,
    what: 'templates: tags on snapshots, with their recipes',
    sql: `
      CREATE TABLE templates (
        id TEXT PRIMARY KEY,
        project_id TEXT NOT NULL REFERENCES projects (id),
        name TEXT NOT NULL,
        recipe TEXT NOT NULL,
        image_id TEXT NOT NULL,
        snapshot_id TEXT NOT NULL REFERENCES snapshots (id),
        digest TEXT NOT NULL,
        warm_min INTEGER NOT NULL,
        warm_max INTEGER NOT NULL,
        created_at_ms INTEGER NOT NULL,
        built_at_ms INTEGER NOT NULL,
        build_id TEXT NOT NULL
      ) STRICT;
      CREATE UNIQUE INDEX templates_name ON templates (project_id, name);
      CREATE INDEX templates_snapshot ON templates (snapshot_id);
    `,
  },
  {
    version: 12,
    what: 'snapshots count in quotas',
    sql: `
      CREATE INDEX snapshots_project ON snapshots (project_id, own_bytes);
      -- Tiers as they were shipped; what an operator has made of them stays.
      UPDATE quota_tiers SET bounds = json_patch(bounds, '{"snapshotMiB":1024}') WHERE name = 'FREE' AND bounds =
        '{"sandboxes":1,"cpus":1,"memoryMiB":512,"diskMiB":1024,"imageMiB":1024,"builds":1,"buildsPerDay":5,"buildMinutes":5}';
      UPDATE quota_tiers SET bounds = json_patch(bounds, '{"snapshotMiB":10240}') WHERE name = 'PRO' AND bounds =
        '{"sandboxes":3,"cpus":6,"memoryMiB":6144,"diskMiB":30720,"imageMiB":10240,"builds":3,"buildsPerDay":100,"buildMinutes":15}';
      UPDATE quota_tiers SET bounds = json_patch(bounds, '{"snapshotMiB":102400}') WHERE name = 'ENTERPRISE' AND bounds =
        '{"sandboxes":10,"cpus":40,"memoryMiB":81920,"diskMiB":1024000,"imageMiB":102400,"builds":10,"buildsPerDay":1000,"buildMinutes":30}';
      UPDATE quota_tiers SET bounds = json_patch(bounds, '{"snapshotMiB":1048576}') WHERE name = 'DEDICATED' AND bounds =
        '{"sandboxes":50,"cpus":800,"memoryMiB":1638400,"diskMiB":52428800,"imageMiB":1048576,"builds":50,"buildsPerDay":10000,"buildMinutes":60}';
    `,
  },
  {
    version: 13,
    what: 'what snapshots hold of the disk, and for which of them it counts',
    sql: `
      CREATE TABLE snapshot_holdings (
        snapshot_id TEXT NOT NULL REFERENCES snapshots (id),
        holding TEXT NOT NULL,
        bytes INTEGER NOT NULL,
        counted INTEGER NOT NULL,
        PRIMARY KEY (snapshot_id, holding)
      ) STRICT, WITHOUT ROWID;
      CREATE INDEX snapshot_holdings_holding ON snapshot_holdings (holding);
      CREATE UNIQUE INDEX snapshot_holdings_counted ON snapshot_holdings (holding) WHERE counted = 1;
      ALTER TABLE snapshots ADD COLUMN own_since_ms INTEGER NOT NULL DEFAULT 0;
      UPDATE snapshots SET own_since_ms = created_at_ms;
      -- Until it is known what each holds: what was counted when it was made.
      INSERT INTO snapshot_holdings (snapshot_id, holding, bytes, counted) SELECT id, 'snapshot:' || id, own_bytes, 1 FROM snapshots;
    `,
  },
];

export const SCHEMA_VERSION = MIGRATIONS.length;
