PRAGMA application_id=1398231629;
PRAGMA user_version=1;
BEGIN TRANSACTION;
CREATE TABLE aggregate (
    scenario_no INTEGER NOT NULL,
    day INTEGER NOT NULL,
    holdout INTEGER NOT NULL,
    source TEXT NOT NULL,
    measure TEXT NOT NULL,
    names TEXT NOT NULL, -- JSON array
    value INTEGER NOT NULL,
    PRIMARY KEY (scenario_no, day, holdout, source, measure, names)
) STRICT, WITHOUT ROWID;
INSERT INTO "aggregate" VALUES(1,19675,0,'log','action.failures','["done"]',1);
INSERT INTO "aggregate" VALUES(1,19675,0,'log','action.failures','["look"]',1);
INSERT INTO "aggregate" VALUES(1,19675,0,'log','action.failures','["move"]',1);
INSERT INTO "aggregate" VALUES(1,19675,0,'log','action.successes','["done"]',4);
INSERT INTO "aggregate" VALUES(1,19675,0,'log','action.successes','["look"]',4);
INSERT INTO "aggregate" VALUES(1,19675,0,'log','action.successes','["move"]',4);
INSERT INTO "aggregate" VALUES(1,19675,0,'log','action.visits','["done"]',5);
INSERT INTO "aggregate" VALUES(1,19675,0,'log','action.visits','["look"]',5);
INSERT INTO "aggregate" VALUES(1,19675,0,'log','action.visits','["move"]',5);
INSERT INTO "aggregate" VALUES(1,19675,0,'log','contextual.failures','["look","move"]',1);
INSERT INTO "aggregate" VALUES(1,19675,0,'log','contextual.failures','["move","done"]',1);
INSERT INTO "aggregate" VALUES(1,19675,0,'log','contextual.successes','["look","move"]',4);
INSERT INTO "aggregate" VALUES(1,19675,0,'log','contextual.successes','["move","done"]',4);
INSERT INTO "aggregate" VALUES(1,19675,0,'log','contextual.visits','["look","move"]',5);
INSERT INTO "aggregate" VALUES(1,19675,0,'log','contextual.visits','["move","done"]',5);
INSERT INTO "aggregate" VALUES(1,19675,0,'log','episodes.failure','[]',1);
INSERT INTO "aggregate" VALUES(1,19675,0,'log','episodes.success','[]',4);
INSERT INTO "aggregate" VALUES(1,19675,0,'log','ngram.failure','["look","move","done"]',1);
INSERT INTO "aggregate" VALUES(1,19675,0,'log','ngram.success','["look","move","done"]',4);
INSERT INTO "aggregate" VALUES(1,19675,0,'log','start.failure','["look"]',1);
INSERT INTO "aggregate" VALUES(1,19675,0,'log','start.success','["look"]',4);
INSERT INTO "aggregate" VALUES(1,19675,0,'log','start.visits','["look"]',5);
INSERT INTO "aggregate" VALUES(1,19675,0,'log','transition.failure','["look","move"]',1);
INSERT INTO "aggregate" VALUES(1,19675,0,'log','transition.failure','["move","done"]',1);
INSERT INTO "aggregate" VALUES(1,19675,0,'log','transition.success','["look","move"]',4);
INSERT INTO "aggregate" VALUES(1,19675,0,'log','transition.success','["move","done"]',4);
INSERT INTO "aggregate" VALUES(1,19675,0,'log','transition.visits','["look","move"]',5);
INSERT INTO "aggregate" VALUES(1,19675,0,'log','transition.visits','["move","done"]',5);
INSERT INTO "aggregate" VALUES(1,19675,0,'stats','sessions.actions','[]',15);
INSERT INTO "aggregate" VALUES(1,19675,0,'stats','sessions.failure','[]',1);
INSERT INTO "aggregate" VALUES(1,19675,0,'stats','sessions.success','[]',4);
INSERT INTO "aggregate" VALUES(1,19675,0,'stats','sessions.ticks','[]',15);
INSERT INTO "aggregate" VALUES(1,19675,1,'log','action.failures','["done"]',1);
INSERT INTO "aggregate" VALUES(1,19675,1,'log','action.failures','["look"]',1);
INSERT INTO "aggregate" VALUES(1,19675,1,'log','action.failures','["move"]',1);
INSERT INTO "aggregate" VALUES(1,19675,1,'log','action.visits','["done"]',1);
INSERT INTO "aggregate" VALUES(1,19675,1,'log','action.visits','["look"]',1);
INSERT INTO "aggregate" VALUES(1,19675,1,'log','action.visits','["move"]',1);
INSERT INTO "aggregate" VALUES(1,19675,1,'log','contextual.failures','["look","move"]',1);
INSERT INTO "aggregate" VALUES(1,19675,1,'log','contextual.failures','["move","done"]',1);
INSERT INTO "aggregate" VALUES(1,19675,1,'log','contextual.visits','["look","move"]',1);
INSERT INTO "aggregate" VALUES(1,19675,1,'log','contextual.visits','["move","done"]',1);
INSERT INTO "aggregate" VALUES(1,19675,1,'log','episodes.failure','[]',1);
INSERT INTO "aggregate" VALUES(1,19675,1,'log','ngram.failure','["look","move","done"]',1);
INSERT INTO "aggregate" VALUES(1,19675,1,'log','start.failure','["look"]',1);
INSERT INTO "aggregate" VALUES(1,19675,1,'log','start.visits','["look"]',1);
INSERT INTO "aggregate" VALUES(1,19675,1,'log','transition.failure','["look","move"]',1);
INSERT INTO "aggregate" VALUES(1,19675,1,'log','transition.failure','["move","done"]',1);
INSERT INTO "aggregate" VALUES(1,19675,1,'log','transition.visits','["look","move"]',1);
INSERT INTO "aggregate" VALUES(1,19675,1,'log','transition.visits','["move","done"]',1);
INSERT INTO "aggregate" VALUES(1,19675,1,'stats','sessions.actions','[]',3);
INSERT INTO "aggregate" VALUES(1,19675,1,'stats','sessions.failure','[]',1);
INSERT INTO "aggregate" VALUES(1,19675,1,'stats','sessions.ticks','[]',3);
CREATE TABLE batch (
    batch_no INTEGER PRIMARY KEY,
    scenario_no INTEGER NOT NULL,
    producer_no INTEGER, -- with batch_seq: one road of identity
    batch_seq INTEGER,
    batch_id TEXT, -- the other road
    content_hash BLOB NOT NULL,
    received_at_ms INTEGER NOT NULL,
    n_records INTEGER NOT NULL
) STRICT;
INSERT INTO "batch" VALUES(1,1,1,0,NULL,X'EEF55D7DB8FA77E1A624B749EDB1EAC27736F5135EBC06B93C3CC68C0942B587',1700000000000,6);
INSERT INTO "batch" VALUES(2,1,1,1,NULL,X'169DA382D935CB00CC4FC0845A9F89012D94C3944F1795017CA8CFE7169613A3',1700000000000,6);
INSERT INTO "batch" VALUES(3,1,1,2,NULL,X'301312353C9A605C57F5C7664E5F7F2FFFF87042A9640EE80E2D6DAFDC394E1C',1700000000000,6);
INSERT INTO "batch" VALUES(4,1,1,3,NULL,X'29A1EB64F04E92B327662457078573AFB9AD59BA456B8AE0AB74E86D69B23987',1700000000000,6);
INSERT INTO "batch" VALUES(5,1,1,4,NULL,X'21E2A10A12FA4018C860D686F976D2B82979AB3D230CF608550E0439A044C4E3',1700000000000,6);
INSERT INTO "batch" VALUES(6,1,1,5,NULL,X'E73CE32795BD7E504E75DE341812F3F44903D503147650277468ED0190BE65CF',1700000000000,6);
INSERT INTO "batch" VALUES(7,1,1,6,NULL,X'D7CC079E74425BD1620C12C122CD7028DC6A17C9AF2CAC7F9E9A190CE61C7C85',1700000000000,6);
CREATE TABLE episode (
    episode_no INTEGER PRIMARY KEY,
    episode_id TEXT NOT NULL,
    scenario_no INTEGER NOT NULL,
    origin INTEGER NOT NULL,
    learn_model TEXT NOT NULL,
    outcome TEXT NOT NULL,
    score REAL NOT NULL, -- as score_of gives it
    ended_at_ms INTEGER NOT NULL,
    holdout INTEGER NOT NULL,
    task_id TEXT,
    session_id TEXT,
    group_id TEXT,
    worker_id INTEGER,
    body TEXT NOT NULL -- the whole, JSON
) STRICT;
INSERT INTO "episode" VALUES(1,'worker_decision_sequence:t0:0:0',1,1,'worker_decision_sequence','failure',0.0,1700000000000,1,'t0','s0',NULL,0,'{"episode_id":"worker_decision_sequence:t0:0:0","learn_model":"worker_decision_sequence","outcome":{"kind":"failure","reason":"no"},"actions":["look","move","done"],"task_id":"t0","group_id":null,"session_id":"s0","worker_id":0,"strategy":null,"mean_kpi":null,"start_tick":0,"end_tick":2,"duration_ms":0,"ended_at_ms":1700000000000,"holdout":true,"tags":{}}');
INSERT INTO "episode" VALUES(2,'worker_task:t0:-:0',1,1,'worker_task','failure',0.0,1700000000000,1,'t0','s0',NULL,NULL,'{"episode_id":"worker_task:t0:-:0","learn_model":"worker_task","outcome":{"kind":"failure","reason":"no"},"actions":["look","move","done"],"task_id":"t0","group_id":null,"session_id":"s0","worker_id":null,"strategy":null,"mean_kpi":null,"start_tick":0,"end_tick":2,"duration_ms":0,"ended_at_ms":1700000000000,"holdout":true,"tags":{}}');
INSERT INTO "episode" VALUES(3,'worker_decision_sequence:t1:0:0',1,2,'worker_decision_sequence','success',1.0,1700000000000,0,'t1','s1',NULL,0,'{"episode_id":"worker_decision_sequence:t1:0:0","learn_model":"worker_decision_sequence","outcome":{"kind":"success","score":1.0},"actions":["look","move","done"],"task_id":"t1","group_id":null,"session_id":"s1","worker_id":0,"strategy":null,"mean_kpi":null,"start_tick":0,"end_tick":2,"duration_ms":0,"ended_at_ms":1700000000000,"holdout":false,"tags":{}}');
INSERT INTO "episode" VALUES(4,'worker_task:t1:-:0',1,2,'worker_task','success',1.0,1700000000000,0,'t1','s1',NULL,NULL,'{"episode_id":"worker_task:t1:-:0","learn_model":"worker_task","outcome":{"kind":"success","score":1.0},"actions":["look","move","done"],"task_id":"t1","group_id":null,"session_id":"s1","worker_id":null,"strategy":null,"mean_kpi":null,"start_tick":0,"end_tick":2,"duration_ms":0,"ended_at_ms":1700000000000,"holdout":false,"tags":{}}');
INSERT INTO "episode" VALUES(5,'worker_decision_sequence:t2:0:0',1,3,'worker_decision_sequence','success',1.0,1700000000000,0,'t2','s2',NULL,0,'{"episode_id":"worker_decision_sequence:t2:0:0","learn_model":"worker_decision_sequence","outcome":{"kind":"success","score":1.0},"actions":["look","move","done"],"task_id":"t2","group_id":null,"session_id":"s2","worker_id":0,"strategy":null,"mean_kpi":null,"start_tick":0,"end_tick":2,"duration_ms":0,"ended_at_ms":1700000000000,"holdout":false,"tags":{}}');
INSERT INTO "episode" VALUES(6,'worker_task:t2:-:0',1,3,'worker_task','success',1.0,1700000000000,0,'t2','s2',NULL,NULL,'{"episode_id":"worker_task:t2:-:0","learn_model":"worker_task","outcome":{"kind":"success","score":1.0},"actions":["look","move","done"],"task_id":"t2","group_id":null,"session_id":"s2","worker_id":null,"strategy":null,"mean_kpi":null,"start_tick":0,"end_tick":2,"duration_ms":0,"ended_at_ms":1700000000000,"holdout":false,"tags":{}}');
INSERT INTO "episode" VALUES(7,'worker_decision_sequence:t3:0:0',1,4,'worker_decision_sequence','failure',0.0,1700000000000,0,'t3','s3',NULL,0,'{"episode_id":"worker_decision_sequence:t3:0:0","learn_model":"worker_decision_sequence","outcome":{"kind":"failure","reason":"no"},"actions":["look","move","done"],"task_id":"t3","group_id":null,"session_id":"s3","worker_id":0,"strategy":null,"mean_kpi":null,"start_tick":0,"end_tick":2,"duration_ms":0,"ended_at_ms":1700000000000,"holdout":false,"tags":{}}');
INSERT INTO "episode" VALUES(8,'worker_task:t3:-:0',1,4,'worker_task','failure',0.0,1700000000000,0,'t3','s3',NULL,NULL,'{"episode_id":"worker_task:t3:-:0","learn_model":"worker_task","outcome":{"kind":"failure","reason":"no"},"actions":["look","move","done"],"task_id":"t3","group_id":null,"session_id":"s3","worker_id":null,"strategy":null,"mean_kpi":null,"start_tick":0,"end_tick":2,"duration_ms":0,"ended_at_ms":1700000000000,"holdout":false,"tags":{}}');
INSERT INTO "episode" VALUES(9,'worker_decision_sequence:t4:0:0',1,5,'worker_decision_sequence','success',1.0,1700000000000,0,'t4','s4',NULL,0,'{"episode_id":"worker_decision_sequence:t4:0:0","learn_model":"worker_decision_sequence","outcome":{"kind":"success","score":1.0},"actions":["look","move","done"],"task_id":"t4","group_id":null,"session_id":"s4","worker_id":0,"strategy":null,"mean_kpi":null,"start_tick":0,"end_tick":2,"duration_ms":0,"ended_at_ms":1700000000000,"holdout":false,"tags":{}}');
INSERT INTO "episode" VALUES(10,'worker_task:t4:-:0',1,5,'worker_task','success',1.0,1700000000000,0,'t4','s4',NULL,NULL,'{"episode_id":"worker_task:t4:-:0","learn_model":"worker_task","outcome":{"kind":"success","score":1.0},"actions":["look","move","done"],"task_id":"t4","group_id":null,"session_id":"s4","worker_id":null,"strategy":null,"mean_kpi":null,"start_tick":0,"end_tick":2,"duration_ms":0,"ended_at_ms":1700000000000,"holdout":false,"tags":{}}');
INSERT INTO "episode" VALUES(11,'worker_decision_sequence:t5:0:0',1,6,'worker_decision_sequence','success',1.0,1700000000000,0,'t5','s5',NULL,0,'{"episode_id":"worker_decision_sequence:t5:0:0","learn_model":"worker_decision_sequence","outcome":{"kind":"success","score":1.0},"actions":["look","move","done"],"task_id":"t5","group_id":null,"session_id":"s5","worker_id":0,"strategy":null,"mean_kpi":null,"start_tick":0,"end_tick":2,"duration_ms":0,"ended_at_ms":1700000000000,"holdout":false,"tags":{}}');
INSERT INTO "episode" VALUES(12,'worker_task:t5:-:0',1,6,'worker_task','success',1.0,1700000000000,0,'t5','s5',NULL,NULL,'{"episode_id":"worker_task:t5:-:0","learn_model":"worker_task","outcome":{"kind":"success","score":1.0},"actions":["look","move","done"],"task_id":"t5","group_id":null,"session_id":"s5","worker_id":null,"strategy":null,"mean_kpi":null,"start_tick":0,"end_tick":2,"duration_ms":0,"ended_at_ms":1700000000000,"holdout":false,"tags":{}}');
INSERT INTO "episode" VALUES(13,'dependency_graph:8a4e706f0170ef2e3b6933b8ec1cab56:-:0',1,-16389,'dependency_graph','success',1.0,1700000000000,0,NULL,NULL,NULL,NULL,'{"episode_id":"dependency_graph:8a4e706f0170ef2e3b6933b8ec1cab56:-:0","learn_model":"dependency_graph","outcome":{"kind":"success","score":1.0},"actions":["look","move"],"task_id":null,"group_id":null,"session_id":null,"worker_id":null,"strategy":null,"mean_kpi":null,"start_tick":null,"end_tick":null,"duration_ms":1,"ended_at_ms":1700000000000,"holdout":false,"tags":{}}');
INSERT INTO "episode" VALUES(14,'dependency_graph:8a4e706f0170ef2e3b6933b8ec1cab56:-:0',1,-32773,'dependency_graph','success',1.0,1700000000000,0,NULL,NULL,NULL,NULL,'{"episode_id":"dependency_graph:8a4e706f0170ef2e3b6933b8ec1cab56:-:0","learn_model":"dependency_graph","outcome":{"kind":"success","score":1.0},"actions":["look","move"],"task_id":null,"group_id":null,"session_id":null,"worker_id":null,"strategy":null,"mean_kpi":null,"start_tick":null,"end_tick":null,"duration_ms":1,"ended_at_ms":1700000000000,"holdout":false,"tags":{}}');
INSERT INTO "episode" VALUES(15,'dependency_graph:8a4e706f0170ef2e3b6933b8ec1cab56:-:0',1,-49157,'dependency_graph','success',1.0,1700000000000,0,NULL,NULL,NULL,NULL,'{"episode_id":"dependency_graph:8a4e706f0170ef2e3b6933b8ec1cab56:-:0","learn_model":"dependency_graph","outcome":{"kind":"success","score":1.0},"actions":["look","move"],"task_id":null,"group_id":null,"session_id":null,"worker_id":null,"strategy":null,"mean_kpi":null,"start_tick":null,"end_tick":null,"duration_ms":1,"ended_at_ms":1700000000000,"holdout":false,"tags":{}}');
INSERT INTO "episode" VALUES(16,'dependency_graph:8a4e706f0170ef2e3b6933b8ec1cab56:-:0',1,-65541,'dependency_graph','success',1.0,1700000000000,0,NULL,NULL,NULL,NULL,'{"episode_id":"dependency_graph:8a4e706f0170ef2e3b6933b8ec1cab56:-:0","learn_model":"dependency_graph","outcome":{"kind":"success","score":1.0},"actions":["look","move"],"task_id":null,"group_id":null,"session_id":null,"worker_id":null,"strategy":null,"mean_kpi":null,"start_tick":null,"end_tick":null,"duration_ms":1,"ended_at_ms":1700000000000,"holdout":false,"tags":{}}');
INSERT INTO "episode" VALUES(17,'dependency_graph:8a4e706f0170ef2e3b6933b8ec1cab56:-:0',1,-81925,'dependency_graph','success',1.0,1700000000000,0,NULL,NULL,NULL,NULL,'{"episode_id":"dependency_graph:8a4e706f0170ef2e3b6933b8ec1cab56:-:0","learn_model":"dependency_graph","outcome":{"kind":"success","score":1.0},"actions":["look","move"],"task_id":null,"group_id":null,"session_id":null,"worker_id":null,"strategy":null,"mean_kpi":null,"start_tick":null,"end_tick":null,"duration_ms":1,"ended_at_ms":1700000000000,"holdout":false,"tags":{}}');
INSERT INTO "episode" VALUES(18,'dependency_graph:8a4e706f0170ef2e3b6933b8ec1cab56:-:0',1,-98309,'dependency_graph','success',1.0,1700000000000,0,NULL,NULL,NULL,NULL,'{"episode_id":"dependency_graph:8a4e706f0170ef2e3b6933b8ec1cab56:-:0","learn_model":"dependency_graph","outcome":{"kind":"success","score":1.0},"actions":["look","move"],"task_id":null,"group_id":null,"session_id":null,"worker_id":null,"strategy":null,"mean_kpi":null,"start_tick":null,"end_tick":null,"duration_ms":1,"ended_at_ms":1700000000000,"holdout":false,"tags":{}}');
CREATE TABLE graph (
    position INTEGER PRIMARY KEY,
    scenario_no INTEGER NOT NULL,
    ended_at_ms INTEGER NOT NULL,
    projected INTEGER NOT NULL DEFAULT 0
) STRICT;
INSERT INTO "graph" VALUES(16389,1,1700000000000,1);
INSERT INTO "graph" VALUES(32773,1,1700000000000,1);
INSERT INTO "graph" VALUES(49157,1,1700000000000,1);
INSERT INTO "graph" VALUES(65541,1,1700000000000,1);
INSERT INTO "graph" VALUES(81925,1,1700000000000,1);
INSERT INTO "graph" VALUES(98309,1,1700000000000,1);
INSERT INTO "graph" VALUES(114693,1,1700000000000,0);
CREATE TABLE probe (probe_no INTEGER PRIMARY KEY CHECK (probe_no = 1), at_ms INTEGER NOT NULL);
INSERT INTO "probe" VALUES(1,0);
CREATE TABLE producer (
    producer_no INTEGER PRIMARY KEY,
    scenario_no INTEGER NOT NULL,
    producer_id TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    UNIQUE (scenario_no, producer_id, epoch)
) STRICT;
INSERT INTO "producer" VALUES(1,1,'node',0);
CREATE TABLE quarantine (
    entry_id INTEGER PRIMARY KEY,
    scenario_no INTEGER NOT NULL,
    reason TEXT NOT NULL,
    detail TEXT NOT NULL,
    received_at_ms INTEGER NOT NULL,
    size INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    body BLOB NOT NULL,
    truncated INTEGER NOT NULL,
    headers TEXT NOT NULL, -- JSON
    seen INTEGER NOT NULL DEFAULT 1,
    replayed_at_ms INTEGER,
    UNIQUE (scenario_no, reason, sha256)
) STRICT;
INSERT INTO "quarantine" VALUES(1,1,'not_json','$: no',1700000000000,1,'021fb596db81e6d02bf3d2586ee3981fe519f275c0ac9ca76bbcf2ebb4097d96',X'7B',0,'{}',1,NULL);
CREATE TABLE record (
    position INTEGER PRIMARY KEY,
    kind INTEGER NOT NULL, -- see record_rows.KINDS; 0 is an action
    task_no INTEGER,
    sequence INTEGER, -- event_id, or -position where none was sent
    body TEXT NOT NULL
) STRICT;
INSERT INTO "record" VALUES(16384,0,1,0,'[128,0,0,"look",0,"s0",null,null,false,null,null,null,null,null,"naïve 数据 🙂",null,null,null,null,null,null,null,null,null]');
INSERT INTO "record" VALUES(16385,0,1,16777216,'[128,1,0,"move",16777216,"s0",null,null,false,null,null,null,null,null,"naïve 数据 🙂",null,null,null,null,null,null,null,null,null]');
INSERT INTO "record" VALUES(16386,0,1,33554432,'[128,2,0,"done",33554432,"s0",null,null,false,null,null,null,null,null,"naïve 数据 🙂",null,null,null,null,null,null,null,null,null]');
INSERT INTO "record" VALUES(16387,4,NULL,NULL,'[0,"s0",{"a":1.0},{"kind":"failure","reason":"no"},3,3,null,null,null,null,null,null]');
INSERT INTO "record" VALUES(16388,1,1,-16388,'[0,"decide","p","r","m","e",1,null,null,null,null,"t0",null,"call-0"]');
INSERT INTO "record" VALUES(16389,2,NULL,NULL,'[0,"order?","r",["look","move"],["look"],["move"],"m","e",1,null,null,null,null,null]');
INSERT INTO "record" VALUES(32768,0,2,0,'[128,0,0,"look",0,"s1",null,null,true,null,null,null,null,null,"naïve 数据 🙂",null,null,null,null,null,null,null,null,null]');
INSERT INTO "record" VALUES(32769,0,2,16777216,'[128,1,0,"move",16777216,"s1",null,null,true,null,null,null,null,null,"naïve 数据 🙂",null,null,null,null,null,null,null,null,null]');
INSERT INTO "record" VALUES(32770,0,2,33554432,'[128,2,0,"done",33554432,"s1",null,null,true,null,null,null,null,null,"naïve 数据 🙂",null,null,null,null,null,null,null,null,null]');
INSERT INTO "record" VALUES(32771,4,NULL,NULL,'[0,"s1",{"a":1.0},{"kind":"success","score":1.0},3,3,null,null,null,null,null,null]');
INSERT INTO "record" VALUES(32772,1,2,-32772,'[0,"decide","p","r","m","e",1,null,null,null,null,"t1",null,"call-1"]');
INSERT INTO "record" VALUES(32773,2,NULL,NULL,'[0,"order?","r",["look","move"],["look"],["move"],"m","e",1,null,null,null,null,null]');
INSERT INTO "record" VALUES(49152,0,3,0,'[128,0,0,"look",0,"s2",null,null,true,null,null,null,null,null,"naïve 数据 🙂",null,null,null,null,null,null,null,null,null]');
INSERT INTO "record" VALUES(49153,0,3,16777216,'[128,1,0,"move",16777216,"s2",null,null,true,null,null,null,null,null,"naïve 数据 🙂",null,null,null,null,null,null,null,null,null]');
INSERT INTO "record" VALUES(49154,0,3,33554432,'[128,2,0,"done",33554432,"s2",null,null,true,null,null,null,null,null,"naïve 数据 🙂",null,null,null,null,null,null,null,null,null]');
INSERT INTO "record" VALUES(49155,4,NULL,NULL,'[0,"s2",{"a":1.0},{"kind":"success","score":1.0},3,3,null,null,null,null,null,null]');
INSERT INTO "record" VALUES(49156,1,3,-49156,'[0,"decide","p","r","m","e",1,null,null,null,null,"t2",null,"call-2"]');
INSERT INTO "record" VALUES(49157,2,NULL,NULL,'[0,"order?","r",["look","move"],["look"],["move"],"m","e",1,null,null,null,null,null]');
INSERT INTO "record" VALUES(65536,0,4,0,'[128,0,0,"look",0,"s3",null,null,false,null,null,null,null,null,"naïve 数据 🙂",null,null,null,null,null,null,null,null,null]');
INSERT INTO "record" VALUES(65537,0,4,16777216,'[128,1,0,"move",16777216,"s3",null,null,false,null,null,null,null,null,"naïve 数据 🙂",null,null,null,null,null,null,null,null,null]');
INSERT INTO "record" VALUES(65538,0,4,33554432,'[128,2,0,"done",33554432,"s3",null,null,false,null,null,null,null,null,"naïve 数据 🙂",null,null,null,null,null,null,null,null,null]');
INSERT INTO "record" VALUES(65539,4,NULL,NULL,'[0,"s3",{"a":1.0},{"kind":"failure","reason":"no"},3,3,null,null,null,null,null,null]');
INSERT INTO "record" VALUES(65540,1,4,-65540,'[0,"decide","p","r","m","e",1,null,null,null,null,"t3",null,"call-3"]');
INSERT INTO "record" VALUES(65541,2,NULL,NULL,'[0,"order?","r",["look","move"],["look"],["move"],"m","e",1,null,null,null,null,null]');
INSERT INTO "record" VALUES(81920,0,5,0,'[128,0,0,"look",0,"s4",null,null,true,null,null,null,null,null,"naïve 数据 🙂",null,null,null,null,null,null,null,null,null]');
INSERT INTO "record" VALUES(81921,0,5,16777216,'[128,1,0,"move",16777216,"s4",null,null,true,null,null,null,null,null,"naïve 数据 🙂",null,null,null,null,null,null,null,null,null]');
INSERT INTO "record" VALUES(81922,0,5,33554432,'[128,2,0,"done",33554432,"s4",null,null,true,null,null,null,null,null,"naïve 数据 🙂",null,null,null,null,null,null,null,null,null]');
INSERT INTO "record" VALUES(81923,4,NULL,NULL,'[0,"s4",{"a":1.0},{"kind":"success","score":1.0},3,3,null,null,null,null,null,null]');
INSERT INTO "record" VALUES(81924,1,5,-81924,'[0,"decide","p","r","m","e",1,null,null,null,null,"t4",null,"call-4"]');
INSERT INTO "record" VALUES(81925,2,NULL,NULL,'[0,"order?","r",["look","move"],["look"],["move"],"m","e",1,null,null,null,null,null]');
INSERT INTO "record" VALUES(98304,0,6,0,'[128,0,0,"look",0,"s5",null,null,true,null,null,null,null,null,"naïve 数据 🙂",null,null,null,null,null,null,null,null,null]');
INSERT INTO "record" VALUES(98305,0,6,16777216,'[128,1,0,"move",16777216,"s5",null,null,true,null,null,null,null,null,"naïve 数据 🙂",null,null,null,null,null,null,null,null,null]');
INSERT INTO "record" VALUES(98306,0,6,33554432,'[128,2,0,"done",33554432,"s5",null,null,true,null,null,null,null,null,"naïve 数据 🙂",null,null,null,null,null,null,null,null,null]');
INSERT INTO "record" VALUES(98307,4,NULL,NULL,'[0,"s5",{"a":1.0},{"kind":"success","score":1.0},3,3,null,null,null,null,null,null]');
INSERT INTO "record" VALUES(98308,1,6,-98308,'[0,"decide","p","r","m","e",1,null,null,null,null,"t5",null,"call-5"]');
INSERT INTO "record" VALUES(98309,2,NULL,NULL,'[0,"order?","r",["look","move"],["look"],["move"],"m","e",1,null,null,null,null,null]');
INSERT INTO "record" VALUES(114688,0,7,0,'[128,0,0,"look",0,"s6",null,null,false,null,null,null,null,null,"naïve 数据 🙂",null,null,null,null,null,null,null,null,null]');
INSERT INTO "record" VALUES(114689,0,7,16777216,'[128,1,0,"move",16777216,"s6",null,null,false,null,null,null,null,null,"naïve 数据 🙂",null,null,null,null,null,null,null,null,null]');
INSERT INTO "record" VALUES(114690,0,7,33554432,'[128,2,0,"done",33554432,"s6",null,null,false,null,null,null,null,null,"naïve 数据 🙂",null,null,null,null,null,null,null,null,null]');
INSERT INTO "record" VALUES(114691,4,NULL,NULL,'[0,"s6",{"a":1.0},{"kind":"failure","reason":"no"},3,3,null,null,null,null,null,null]');
INSERT INTO "record" VALUES(114692,1,7,-114692,'[0,"decide","p","r","m","e",1,null,null,null,null,"t6",null,"call-6"]');
INSERT INTO "record" VALUES(114693,2,NULL,NULL,'[0,"order?","r",["look","move"],["look"],["move"],"m","e",1,null,null,null,null,null]');
CREATE TABLE record_identity (
    scenario_no INTEGER NOT NULL,
    record_id TEXT NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (scenario_no, record_id)
) STRICT, WITHOUT ROWID;
INSERT INTO "record_identity" VALUES(1,'call-0',16388);
INSERT INTO "record_identity" VALUES(1,'call-1',32772);
INSERT INTO "record_identity" VALUES(1,'call-2',49156);
INSERT INTO "record_identity" VALUES(1,'call-3',65540);
INSERT INTO "record_identity" VALUES(1,'call-4',81924);
INSERT INTO "record_identity" VALUES(1,'call-5',98308);
INSERT INTO "record_identity" VALUES(1,'call-6',114692);
CREATE TABLE scenario (
    scenario_no INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    records INTEGER NOT NULL DEFAULT 0,
    batches INTEGER NOT NULL DEFAULT 0,
    duplicate_batches INTEGER NOT NULL DEFAULT 0,
    duplicate_records INTEGER NOT NULL DEFAULT 0,
    unknown_fields INTEGER NOT NULL DEFAULT 0,
    quarantined INTEGER NOT NULL DEFAULT 0,
    sessions INTEGER NOT NULL DEFAULT 0,
    episodes INTEGER NOT NULL DEFAULT 0,
    open_tasks INTEGER NOT NULL DEFAULT 0,
    trainings_completed INTEGER NOT NULL DEFAULT 0,
    models_applied INTEGER NOT NULL DEFAULT 0,
    last_batch_no INTEGER NOT NULL DEFAULT 0,
    first_record_at_ms INTEGER,
    last_record_at_ms INTEGER,
    projected_under TEXT
) STRICT;
INSERT INTO "scenario" VALUES(1,'S',42,7,0,0,0,1,7,18,1,0,0,7,1700000000000,1700000000000,NULL);
CREATE TABLE session (
    session_no INTEGER PRIMARY KEY,
    scenario_no INTEGER NOT NULL,
    session_id TEXT NOT NULL,
    position INTEGER,
    ended_at_ms INTEGER, -- its own timestamp where sent, else when it came in
    group_id TEXT,
    phase TEXT,
    counted INTEGER NOT NULL DEFAULT 0,
    UNIQUE (scenario_no, session_id)
) STRICT;
INSERT INTO "session" VALUES(1,1,'s0',16387,1700000000000,NULL,NULL,1);
INSERT INTO "session" VALUES(2,1,'s1',32771,1700000000000,NULL,NULL,1);
INSERT INTO "session" VALUES(3,1,'s2',49155,1700000000000,NULL,NULL,1);
INSERT INTO "session" VALUES(4,1,'s3',65539,1700000000000,NULL,NULL,1);
INSERT INTO "session" VALUES(5,1,'s4',81923,1700000000000,NULL,NULL,1);
INSERT INTO "session" VALUES(6,1,'s5',98307,1700000000000,NULL,NULL,1);
INSERT INTO "session" VALUES(7,1,'s6',114691,1700000000000,NULL,NULL,0);
CREATE TABLE session_task (
    session_no INTEGER NOT NULL,
    task_no INTEGER NOT NULL,
    PRIMARY KEY (session_no, task_no)
) STRICT, WITHOUT ROWID;
INSERT INTO "session_task" VALUES(1,1);
INSERT INTO "session_task" VALUES(2,2);
INSERT INTO "session_task" VALUES(3,3);
INSERT INTO "session_task" VALUES(4,4);
INSERT INTO "session_task" VALUES(5,5);
INSERT INTO "session_task" VALUES(6,6);
INSERT INTO "session_task" VALUES(7,7);
CREATE TABLE task (
    task_no INTEGER PRIMARY KEY,
    scenario_no INTEGER NOT NULL,
    task_id TEXT NOT NULL,
    actions INTEGER NOT NULL, -- how many it has
    changed_upto INTEGER NOT NULL, -- highest batch_no of its actions and its session, 0: no actions yet
    last_received_ms INTEGER NOT NULL,
    terminal INTEGER NOT NULL, -- it has a terminal action
    session_no INTEGER, -- the ended session it belongs to; never changes once set
    projected_upto INTEGER NOT NULL DEFAULT 0, -- changed_upto when it was projected, 0: never
    projected_idle INTEGER NOT NULL DEFAULT 0,
    open_tail INTEGER NOT NULL DEFAULT 0,
    -- 1: to be projected now, 2: when it is idle, 0: nothing to do
    due INTEGER NOT NULL AS (
        CASE
            WHEN changed_upto > projected_upto THEN
                CASE WHEN terminal OR session_no IS NOT NULL OR projected_upto > 0 THEN 1 ELSE 2 END
            WHEN open_tail AND NOT projected_idle THEN 2
            ELSE 0
        END
    ) VIRTUAL,
    UNIQUE (scenario_no, task_id)
) STRICT;
INSERT INTO "task" VALUES(1,1,'t0',3,1,1700000000000,1,1,1,0,0);
INSERT INTO "task" VALUES(2,1,'t1',3,2,1700000000000,1,2,2,0,0);
INSERT INTO "task" VALUES(3,1,'t2',3,3,1700000000000,1,3,3,0,0);
INSERT INTO "task" VALUES(4,1,'t3',3,4,1700000000000,1,4,4,0,0);
INSERT INTO "task" VALUES(5,1,'t4',3,5,1700000000000,1,5,5,0,0);
INSERT INTO "task" VALUES(6,1,'t5',3,6,1700000000000,1,6,6,0,0);
INSERT INTO "task" VALUES(7,1,'t6',3,7,1700000000000,1,7,0,0,0);
CREATE UNIQUE INDEX batch_by_seq ON batch (producer_no, batch_seq) WHERE producer_no IS NOT NULL;
CREATE UNIQUE INDEX batch_by_id ON batch (scenario_no, batch_id) WHERE batch_id IS NOT NULL;
CREATE UNIQUE INDEX record_by_task ON record (task_no, sequence) WHERE task_no IS NOT NULL;
CREATE INDEX record_by_kind ON record (kind) WHERE kind <> 0;
CREATE INDEX session_ended ON session (scenario_no, ended_at_ms) WHERE position IS NOT NULL;
CREATE INDEX session_pending ON session (session_no) WHERE position IS NOT NULL AND counted = 0;
CREATE INDEX task_due_now ON task (task_no) WHERE due = 1;
CREATE INDEX task_due_when_idle ON task (last_received_ms) WHERE due = 2;
CREATE INDEX graph_newest ON graph (scenario_no, ended_at_ms);
CREATE INDEX graph_pending ON graph (position) WHERE projected = 0;
CREATE INDEX episode_by_origin ON episode (origin);
CREATE INDEX episode_by_time ON episode (scenario_no, ended_at_ms);
CREATE INDEX episode_known ON episode (scenario_no, learn_model, ended_at_ms, outcome, score) WHERE outcome <> 'unknown';
CREATE INDEX aggregate_gone ON aggregate (scenario_no) WHERE value = 0;
COMMIT;
