// Run by mongosh: makes the replica set, waits for its primary, makes the user that the services are. Repeatable.
const fs = require("fs");

const secret = (name) => fs.readFileSync(`/run/secrets/${name}`, "utf8").trim();
const login = `root:${encodeURIComponent(secret("mongo_root_password"))}`;
const admin = connect(`mongodb://${login}@mongo:27017/admin?authSource=admin&directConnection=true`);

try {
  admin.adminCommand({ replSetGetStatus: 1 });
} catch (error) {
  if (error.codeName !== "NotYetInitialized") throw error;
  admin.adminCommand({ replSetInitiate: { _id: "luthier", members: [{ _id: 0, host: "mongo:27017" }] } });
}
for (let tries = 0; !admin.hello().isWritablePrimary; tries++) {
  if (tries === 120) throw new Error("no primary after a minute");
  sleep(500);
}
const grant = { pwd: secret("mongo_luthier_password"), roles: [{ role: "readWrite", db: "luthier" }] };
if (admin.getUser("luthier")) admin.updateUser("luthier", grant);
else admin.createUser({ user: "luthier", ...grant });
print("the replica set and the user are there");
